"""``python -m benchmarks [name ...] [--quick]``: each benchmark in a process of its own."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.machine import ROOT

BENCHMARKS = (
    "ascent",
    "clustering",
    "kernels",
    "layer",
    "peers",
    "quickstart",
    "report",
    "scaling",
    "sweep",
)


def main(args: Sequence[str] | None = None) -> int:
    """Run benchmarks one after another.

    Args:
        args: Their names, by default all, and ``--quick``.

    Returns:
        The exit status: 0 where all of them were.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="try them out on less")
    given = parser.parse_args(args)
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark '{name}'; there are {', '.join(BENCHMARKS)}")
    flags = ["--quick"] if given.quick else []
    # What one sets, such as threads or the allocator, must not reach the next.
    status = [
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], cwd=ROOT).returncode
        for name in given.names or BENCHMARKS
    ]
    return int(any(status))


if __name__ == "__main__":
    sys.exit(main())
