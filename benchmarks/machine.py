"""Where and when a benchmark ran, and whether it had the machine to itself."""

import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "polylight",
    "torch",
    "lightning",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "faiss-cpu",
    "triton",
)
# What decides a result; the results themselves and the tables made from them do not.
_SOURCES = (
    "polylight",
    "kernels",
    "configs",
    "pyproject.toml",
    "benchmarks/*.py",
    "benchmarks/peer_workers/**",
)


class Watch:
    """Follows the machine from its creation on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cores = os.cpu_count() or 1
        self._own, self._busy = _own_seconds(), _busy_seconds()
        self._load = os.getloadavg()[0]
        self._commit, self._dirty = _commit()

    def metadata(self, benchmark: str, quick: bool, config: dict[str, Any]) -> dict[str, Any]:
        """Describe the run of a benchmark that began with this watch and has just ended.

        Args:
            benchmark: Its name.
            quick: Whether it only tried itself out.
            config: Its parameters, JSON values.

        Returns:
            Metadata, JSON values.
        """
        elapsed = time.perf_counter() - self._began
        busy = _busy_seconds()
        others = None
        if busy is not None and self._busy is not None:
            foreign = busy - self._busy - (_own_seconds() - self._own)
            others = round(max(foreign, 0.0) / elapsed, 3)
        return {
            "benchmark": benchmark,
            "quick": quick,
            "config": config,
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(elapsed, 1),
            "commit": self._commit,
            "dirty": self._dirty,
            "cpu": _cpu_name(),
            "cores": self._cores,
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load_before": round(self._load, 2),
            "cores_used_by_others": others,
            "python": platform.python_version(),
            "versions": _versions(),
        }


def _own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def _busy_seconds() -> float | None:
    """Processor time of the whole machine, that taken by its host included; None if not Linux."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    # user nice system idle iowait irq softirq steal; guest time is in user already.
    ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout, and whether the sources differ from it; None without git."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=ROOT, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *_SOURCES)
    return git("rev-parse", "HEAD"), None if changed is None else bool(changed)


def _cpu_name() -> str:
    """Model of the processor and what torch uses of it, as models may be named alike."""
    return f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
