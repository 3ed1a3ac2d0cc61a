"""What every benchmark shares: turns between competitors, rows, and one JSON a benchmark."""

import argparse
import dataclasses
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from benchmarks.document import OK, QUICK_RESULTS, RESULTS, check_document, place
from benchmarks.machine import Watch
from benchmarks.render import console_table

Limit = tuple[Literal["<=", ">="], float]
Level = Literal["headline", "table", "detail"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity, in long form.

    Attributes:
        case: What was measured.
        provider: Whose it is: polylight, or what it is compared with.
        shape: Size of the problem, as text.
        dtype: Of the data.
        unit: Of the numbers.
        median: Of the repeats; None where it failed.
        p20: 20th percentile, likewise.
        p80: 80th percentile, likewise.
        n: Number of repeats.
        target: What the median has to be, such as ``>= 0.7``; empty where there is no such thing.
        passed: Whether it is; None without a target.
        status: ``ok``, or ``FAILED: `` and why.
        level: ``headline`` belongs into the short table too, ``detail`` into none unless it is red.
    """

    case: str
    provider: str
    shape: str
    dtype: str
    unit: str
    median: float | None
    p20: float | None
    p80: float | None
    n: int
    target: str
    passed: bool | None
    status: str
    level: Level


def row(
    values: Sequence[float],
    *,
    case: str,
    unit: str,
    provider: str = "polylight",
    shape: str = "",
    dtype: str = "float32",
    limit: Limit | None = None,
    failure: str = "",
    level: Level = "table",
) -> Row:
    """Sum repeats up in a row.

    Args:
        values: The repeats; none where it failed.
        case: See :class:`Row`, as for all that follows.
        unit: Likewise.
        provider: Likewise.
        shape: Likewise.
        dtype: Likewise.
        limit: What the median has to be.
        failure: Why there are no numbers.
        level: Likewise.

    Returns:
        The row; one that says FAILED where a value is missing or not finite.
    """
    if not failure and not (values and all(map(math.isfinite, values))):
        failure = "not finite" if values else "nothing was measured"
    low, middle, high = (
        (None, None, None) if failure else np.percentile(values, [20, 50, 80]).tolist()
    )
    passed = None
    if limit is not None:
        sign, bound = limit
        passed = middle is not None and (middle <= bound if sign == "<=" else middle >= bound)
    return Row(
        case=case,
        provider=provider,
        shape=shape,
        dtype=dtype,
        unit=unit,
        median=middle,
        p20=low,
        p80=high,
        n=0 if failure else len(values),
        target=f"{limit[0]} {limit[1]:.4g}" if limit else "",
        passed=passed,
        status=f"FAILED: {failure}" if failure else OK,
        level=level,
    )


def gate(what: str, value: float, limit: Limit, unit: str, shape: str = "") -> Row:
    """Check that something is right; see :func:`take_turns` for what a red gate does.

    Args:
        what: What is checked.
        value: What was found.
        limit: What it has to be.
        unit: Of the value.
        shape: Size of the problem, as text.

    Returns:
        A row.
    """
    return row([value], case=f"gate: {what}", unit=unit, shape=shape, limit=limit)


@dataclasses.dataclass(frozen=True)
class Competitor:
    """One of those that take turns.

    Attributes:
        run: Does the work that is timed and returns how much it was, in units of its own.
        prepare: Runs before it, each time, and is not timed.
    """

    run: Callable[[], float]
    prepare: Callable[[], object] = lambda: None


@dataclasses.dataclass
class Timed:
    """Work per second in each repeat of a competitor; none, and the reason, where it failed."""

    rates: list[float] = dataclasses.field(default_factory=list)
    failure: str = ""


def take_turns(
    competitors: Mapping[str, Competitor],
    repeats: int,
    *,
    warmups: int = 1,
    gates: Sequence[Row] = (),
) -> dict[str, Timed]:
    """Time competitors in turns, A B A B ..., so that a change of the machine hits all of them.

    Args:
        competitors: By name.
        repeats: Turns that count, > 0.
        warmups: Turns before them that do not.
        gates: If any of them is red, nothing runs and all have failed.

    Returns:
        By name; one that raised has failed and takes no further turns.
    """
    timed = {name: Timed() for name in competitors}
    if not all(g.passed for g in gates):
        return {name: Timed(failure="a gate is red") for name in competitors}
    for turn in range(-warmups, repeats):
        for name, competitor in competitors.items():
            if timed[name].failure:
                continue
            try:
                competitor.prepare()
                rate = _rate(competitor)
            # A competitor may be anybody's code; what it raises is its result.
            except Exception as error:
                traceback.print_exc()
                timed[name] = Timed(failure=f"{type(error).__name__}: {error}")
                continue
            if turn >= 0:
                timed[name].rates.append(rate)
    return timed


def _rate(competitor: Competitor) -> float:
    _wait_for_gpu()
    began = time.perf_counter()
    work = competitor.run()
    _wait_for_gpu()
    return work / (time.perf_counter() - began)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(ours: Timed, theirs: Timed) -> tuple[list[float], str]:
    """Our rate over theirs, turn by turn; or no ratio, and why."""
    failure = ours.failure or theirs.failure
    pairs = [] if failure else list(zip(ours.rates, theirs.rates, strict=True))
    return [a / b for a, b in pairs], failure


def measure(
    name: str, run: Callable[[bool], tuple[list[Row], dict[str, Any]]], args: Sequence[str]
) -> int:
    """Run a benchmark as a command: measure, write its JSON, print its table.

    Args:
        name: Its name, which is that of its file.
        run: Takes whether to be quick; returns the rows and the parameters.
        args: The arguments of the process.

    Returns:
        The exit status: 1 where a row failed or a gate is red, else 0.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="try it out on less, into runs/benchmarks instead of benchmarks/results",
    )
    quick = parser.parse_args(args).quick
    watch = Watch()
    rows, config = run(quick)
    document = {
        "metadata": watch.metadata(name, quick, config),
        "results": [dataclasses.asdict(r) for r in rows],
    }
    check_document(document)
    path = place(QUICK_RESULTS if quick else RESULTS, document)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    Console(width=None if sys.stdout.isatty() else 150).print(console_table(document))
    print(path)
    red = any(r.case.startswith("gate:") and not r.passed for r in rows)
    return int(red or any(r.status != OK for r in rows))
