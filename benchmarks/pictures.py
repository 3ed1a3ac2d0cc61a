"""The pictures of the README and the docs, from the quickstart's run.

``python -m benchmarks.pictures RUN_DIR`` runs the quickstart in RUN_DIR if it is not finished
there, writes its report, and takes from both what docs/images shows.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
from PIL import Image

from benchmarks.machine import ROOT
from benchmarks.report import BROWSER_FLAGS, browser
from polylight import read_run
from polylight.run.manifest import read_manifest

CONFIG = "configs/quickstart.yaml"
IMAGES = ROOT / "docs" / "images"
_WIDTH = 1280  # pixels; GitHub shows a README at about two thirds of it
_HEIGHT = 900
_QUALITY = 85


def make_pictures(run_dir: Path, folder: Path = IMAGES) -> None:
    """Write the pictures of a finished run.

    Args:
        run_dir: The run, with its report in ``report``.
        folder: Where ``quickstart.jpg``, ``report-neuron.jpg`` and ``report-pdf.jpg`` go.
    """
    with Image.open(run_dir / "neurons.png") as sheet:
        _save(sheet, folder / "quickstart.jpg")
    shot = folder / ".report-neuron.png"
    _screenshot(run_dir / "report" / "index.html", most_polysemantic(run_dir), shot)
    with Image.open(shot) as page:
        _save(page, folder / "report-neuron.jpg")
    shot.unlink()
    _save(pdf_page(run_dir / "report" / "report.pdf"), folder / "report-pdf.jpg")


def most_polysemantic(run_dir: Path) -> str:
    """Name the neuron of the highest score."""
    table = read_run(run_dir, columns=["neuron", "score"])
    return str(table["neuron"][pc.index(table["score"], pc.max(table["score"])).as_py()])


def pdf_page(path: Path, number: int = 0) -> Image.Image:
    """Draw a page of a PDF, as wide as the other pictures.

    Args:
        path: The PDF.
        number: The page, from 0.

    Returns:
        An RGB picture.
    """
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        page = document[number]
        return page.render(scale=_WIDTH / page.get_width()).to_pil().convert("RGB")


def _screenshot(index: Path, neuron: str, path: Path) -> None:
    """Show the page of a neuron in Chromium, as a reader reaches it from the index."""
    from playwright.sync_api import sync_playwright

    executable, _ = browser()
    if not executable:
        raise SystemExit("the page of a neuron needs playwright and Chromium: install both")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        size = {"width": _WIDTH, "height": _HEIGHT}
        page = chromium.new_page(viewport=size, color_scheme="light")
        page.goto(index.resolve().as_uri())
        page.get_by_role("link", name=neuron, exact=True).first.click()
        page.wait_for_load_state("load")
        page.screenshot(path=path)
        chromium.close()


def _save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG, no wider than a page shows it."""
    rgb = picture.convert("RGB")
    rgb.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.LANCZOS)
    rgb.save(path, quality=_QUALITY, optimize=True)


def _polylight(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "polylight", *arguments], cwd=ROOT, check=True)


def main(run_dir: Path) -> None:
    """Make what is missing of the run, and its pictures."""
    manifest = read_manifest(run_dir)
    if manifest is None or manifest.status != "finished":
        _polylight("fit", "--config", CONFIG, "--run_dir", str(run_dir))
    _polylight("report", str(run_dir))
    make_pictures(run_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
