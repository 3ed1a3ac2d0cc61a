"""What a report takes: the command, its PDF, and the page of thousands of neurons in a browser."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Limit, Row, gate, measure, row
from benchmarks.machine import ROOT
from benchmarks.synthetic import write_synthetic_run

_SECONDS: Limit = ("<=", 30.0)
_PEAK: Limit = ("<=", 1024.0)
_PDF_SECONDS: Limit = ("<=", 5.0)
_PAINT: Limit = ("<=", 1000.0)
_FILTER: Limit = ("<=", 100.0)
# With it pictures take as many bytes as real ones, as PNG and as JPEG.
_GRAIN = 0.03
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Nothing that a browser does for itself may run beside what is measured.
BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# A task that is posted in a frame runs once that frame is through.
_FILTER_SCRIPT = """async (texts) => {
  const field = document.querySelector("input[name=q]");
  const taken = [];
  for (const text of texts) {
    field.value = text;
    const began = performance.now();
    field.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = done;
      channel.port2.postMessage(null);
    }));
    taken.push(performance.now() - began);
  }
  return taken;
}"""
_PAINT_SCRIPT = """() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime"""


def command_rows(run_dir: Path, neurons: int, shape: str, repeats: int) -> list[Row]:
    """Measure ``polylight report`` as a process of its own.

    Args:
        run_dir: The run.
        neurons: How many it has.
        shape: Its size, as text.
        repeats: How often, > 0.

    Returns:
        Time and memory, and gates.
    """
    seconds, peaks = [], []
    for _ in range(repeats):
        taken, peak = report_process(run_dir, "--pdf", "true")
        seconds.append(taken)
        peaks.append(peak)
    folder = run_dir / "report"
    pages = len(list((folder / "neurons").glob("*.html")))
    pdf = (folder / "report.pdf").read_bytes()[:5] == b"%PDF-"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [
        gate("report, pages missing", float(neurons - pages), ("<=", 0.0), "pages", shape),
        gate("report, there is a PDF", float(pdf), (">=", 1.0), "", shape),
        row(
            seconds,
            case="report, site and PDF, whole process",
            unit="s",
            shape=shape,
            limit=_SECONDS,
            level="headline",
        ),
        row(peaks, case="report, peak of resident memory", unit="MiB", shape=shape, limit=_PEAK),
        row([size / 2**20], case="report, size on the disk", unit="MiB", shape=shape),
    ]


def report_process(run_dir: Path, *flags: str) -> tuple[float, float]:
    """Run ``polylight report`` as a user would.

    Args:
        run_dir: The run.
        flags: Further arguments.

    Returns:
        Seconds, and the peak of resident memory in MiB; NaN where the system does not tell.

    Raises:
        RuntimeError: If the command fails.
    """
    memory = run_dir.with_name(f"{run_dir.name}.memory.json")
    command = [sys.executable, "-m", "benchmarks.process", str(memory), "report", str(run_dir)]
    began = time.perf_counter()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join([*command, *flags])}\n{done.stdout}{done.stderr}")
    sample = json.loads(memory.read_text())
    return seconds, sample["peak"] if sample else float("nan")


def pdf_row(run_dir: Path, shape: str, repeats: int) -> Row:
    """Measure how long a PDF takes once the run is read and the libraries are loaded.

    Args:
        run_dir: The run.
        shape: What the PDF shows, as text.
        repeats: How often, > 0.

    Returns:
        A row.
    """
    # The extra of reports is for this benchmark alone.
    from polylight.report.gather import gather_run
    from polylight.report.pdf import write_pdf

    run = gather_run(run_dir)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        write_pdf(run, run_dir / "measured.pdf")
        seconds.append(time.perf_counter() - began)
    return row(
        seconds[1:],
        case="report, PDF of the most and the least polysemantic neurons",
        unit="s",
        shape=shape,
        limit=_PDF_SECONDS,
        level="headline",
    )


def browser() -> tuple[str, str]:
    """Find the browser: its path, and why there is none."""
    if importlib.util.find_spec("playwright") is None:
        return "", "not measured, for playwright is not installed"
    found = [path for name in _BROWSERS if (path := shutil.which(name))]
    return (found[0], "") if found else ("", f"not measured, for there is no {_BROWSERS[0]}")


def watch_page(page: Path, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Open a run's page in a browser, and filter its table by names.

    Args:
        page: The HTML file.
        texts: What to search for, one after the other.
        repeats: How often to open it, > 0.

    Returns:
        ``paints`` and ``filters``, milliseconds each, and ``count``, what the table says that it
        shows in the end.
    """
    from playwright.sync_api import sync_playwright

    paints: list[float] = []
    filters: list[float] = []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser()[0], args=BROWSER_FLAGS)
        for _ in range(repeats):
            tab = started.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.resolve().as_uri())
            # The page forbids the code in texts with which a browser's driver would wait.
            while (paint := tab.evaluate(_PAINT_SCRIPT)) is None:
                tab.wait_for_timeout(5)
            paints.append(paint)
            filters += tab.evaluate(_FILTER_SCRIPT, list(texts))
            count = tab.inner_text(".count")
            tab.close()
        started.close()
    return {"paints": paints, "filters": filters, "count": count}


def browser_rows(seen: Mapping[str, Any], expected: str, shape: str) -> list[Row]:
    """Rows of what was seen in the browser.

    Args:
        seen: From :func:`watch_page`.
        expected: What the table has to say in the end.
        shape: Size of the table, as text.

    Returns:
        A gate and two rows.
    """
    right = float(seen["count"] == expected)
    return [
        gate("report, the filter finds what it should", right, (">=", 1.0), "", shape),
        *_page_rows(seen["paints"], seen["filters"], shape),
    ]


def _page_rows(
    paints: Sequence[float], filters: Sequence[float], shape: str, failure: str = ""
) -> list[Row]:
    return [
        row(values, case=case, unit="ms", shape=shape, limit=limit, failure=failure)
        for case, values, limit in (
            ("report, from opening the page to its first paint", paints, _PAINT),
            ("report, from a letter in the search to the filtered table", filters, _FILTER),
        )
    ]


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    neurons, repeats, many = (64, 1, 160) if quick else (1000, 3, 4000)
    images, features, layers = 32, 1280, 8
    config = {"neurons": neurons, "images": images, "features": features, "repeats": repeats}
    shape = f"{neurons:,} neurons, {images} images of 128 px"
    with tempfile.TemporaryDirectory() as directory:
        large = Path(directory) / "large"
        write_synthetic_run(large, neurons=neurons, images=images, features=features, grain=_GRAIN)
        rows = command_rows(large, neurons, shape, repeats)
        shutil.rmtree(large)
        paper = Path(directory) / "paper"
        write_synthetic_run(paper, neurons=64, features=features, grain=_GRAIN)
        rows.append(pdf_row(paper, "20 neurons, 16 images of 128 px", repeats))
        shape, (_, failure) = f"table of {many:,} neurons", browser()
        if failure:
            return [*rows, *_page_rows([], [], shape, failure)], config
        table = Path(directory) / "table"
        write_synthetic_run(table, neurons=many, images=6, size=32, layers=layers)
        report_process(table, "--pdf", "false")
        # The last one has to find a whole layer, one of ``layers``.
        texts = ("s", "st", "stage", "", "stage.1 3", "script", "stage.2:")
        seen = watch_page(table / "report" / "index.html", texts, repeats)
    expected = f"{many // layers:,} of {many:,} neurons"
    return [*rows, *browser_rows(seen, expected, shape)], config


if __name__ == "__main__":
    sys.exit(measure("report", run, sys.argv[1:]))
