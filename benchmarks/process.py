"""A run in a process of its own, watched: time, memory, and when its neurons are finished.

``python -m benchmarks.process REPORT ...`` is ``polylight ...`` that also writes down its memory.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from polylight.cli import main
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.store import NEURONS_DIR

# What benchmarks.machine needs, torch above all, is not the measured command's.
_ROOT = Path(__file__).resolve().parents[1]
_SECONDS_BETWEEN_SAMPLES = 0.05
_MIB_PER_KIB = 1 / 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory of a process at a time.

    Attributes:
        when: Seconds since the epoch.
        resident: MiB.
        peak: Largest resident memory so far, MiB, kept by the system: no spike is missed.
    """

    when: float
    resident: float
    peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """A run that is over.

    Attributes:
        seconds: Wall-clock time of the process.
        manifest: What it recorded.
        samples: Of its memory, in order, the last one when its work was done; none where the
            system does not tell.
        finished: When neurons were safe on the disk, seconds since the epoch, and how many then,
            in order.
    """

    seconds: float
    manifest: Manifest
    samples: Sequence[Sample]
    finished: Sequence[tuple[float, int]]

    @property
    def peak(self) -> float:
        """Largest resident memory of the process until it was done, MiB; NaN as above."""
        return self.samples[-1].peak if self.samples else float("nan")

    def resident(self, when: float) -> float:
        """Resident memory at a time, MiB: the last sample until then; NaN where there is none."""
        earlier = [s.resident for s in self.samples if s.when <= when]
        return earlier[-1] if earlier else float("nan")

    def seconds_per_neuron(self, begin: float = 0.0, end: float = 1.0) -> float:
        """Wall-clock time of a neuron while the run is under way.

        From the moment in which the first neurons are through, so that imports, loading and the
        filling of the pool do not count, to that of the last ones.

        Args:
            begin: Which part of that time's neurons to look at, from, in [0, 1).
            end: And to, in (``begin``, 1].

        Returns:
            Seconds; NaN where there is no such stretch.
        """
        last = len(self.finished) - 1
        first, final = round(begin * last), round(end * last)
        count = sum(n for _, n in self.finished[first + 1 : final + 1])
        if not count:
            return float("nan")
        return (self.finished[final][0] - self.finished[first][0]) / count


def fit(
    arguments: Sequence[str], run_dir: Path, environment: Mapping[str, str] | None = None
) -> Watched:
    """Run ``polylight fit`` as a user would, and watch it.

    Args:
        arguments: What follows ``polylight fit``, but for the directory.
        run_dir: Directory of the run.
        environment: Variables that the process gets besides those of this one.

    Returns:
        What was seen.

    Raises:
        RuntimeError: If the command fails.
    """
    log, report = (run_dir.with_name(f"{run_dir.name}.{kind}") for kind in ("log", "json"))
    command = [sys.executable, "-m", "benchmarks.process", str(report), "fit"]
    command += ["--run_dir", str(run_dir), *arguments]
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        samples = []
        while process.poll() is None:
            sample = read_memory(process.pid)
            samples += [sample] if sample else []
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{log.read_text()}")
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise RuntimeError(f"{' '.join(command)} left no manifest")
    last = json.loads(report.read_text())
    if last:
        # Once it is done, a process ends: its libraries are read in to be taken down, which can
        # be 100 MiB, or less if the system has dropped them.
        samples = [s for s in samples if s.when < last["when"]] + [Sample(**last)]
    return Watched(
        seconds=seconds, manifest=manifest, samples=samples, finished=read_finished(run_dir)
    )


def read_memory(process: int) -> Sample | None:
    """Look at the memory of a process.

    The peak that ``getrusage`` reports of a child would not do: it begins with what the parent
    held when it started the child.

    Args:
        process: Its number.

    Returns:
        A sample; None where the process is gone or the system has no ``/proc``.
    """
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", text, re.MULTILINE))
    if len(found) < 2:
        return None
    resident, peak = (int(found[name]) * _MIB_PER_KIB for name in ("VmRSS", "VmHWM"))
    return Sample(when=time.time(), resident=resident, peak=peak)


def read_finished(run_dir: Path) -> list[tuple[float, int]]:
    """Tell from the files of a run when its neurons were finished.

    Args:
        run_dir: Directory of the run.

    Returns:
        Seconds since the epoch and the number of neurons of each part, in order.
    """
    parts = (run_dir / NEURONS_DIR).glob("*.parquet")
    return sorted((p.stat().st_mtime, pq.read_metadata(p).num_rows) for p in parts)


def _main(report: str, *arguments: str) -> int:
    """Run a command of polylight; then write this process's memory as JSON."""
    status = main(arguments)
    sample = read_memory(os.getpid())
    Path(report).write_text(json.dumps(sample and dataclasses.asdict(sample)))
    return status


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
