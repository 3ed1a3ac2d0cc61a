"""A validation as a figure: scores against number of features, and ROC curves."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polylight.inspect.palette import PALETTE
from polylight.planted.outcome import CONTROLS, PRIMARY, Outcome
from polylight.planted.statistics import Array, auroc
from polylight.planted.summary import first_seeds
from polylight.run.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (7.2, 3.2)
_DPI = 200
_INK, _FAINT = "#1f2328", "#8c959f"
# Colours, marks and strokes all differ, so that a grey print can be read too.
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STROKES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_WIDTH = 0.8
_LOOK: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    # The same outcomes give the same bytes.
    "svg.hashsalt": "polylight",
}


def plot_validation(outcomes: Sequence[Outcome], path: str | Path) -> tuple[Path, Path]:
    """Draw the primary score against the number of features, and its ROC curves, by condition.

    Args:
        outcomes: Of any subjects, layers and seeds, under ``MOST_CONDITIONS`` at the most; of each
            neuron the lowest seed is drawn.
        path: Name of the figure; its ending is replaced by ``.png`` and ``.svg``.

    Returns:
        The two files that were written.
    """
    # It is slow to import, and only this needs it.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    by_condition: dict[str, list[tuple[Outcome, float]]] = {}
    for o in outcomes:
        by_condition.setdefault(o.condition, [])
    for condition, points in by_condition.items():
        once = first_seeds([o for o in outcomes if o.condition == condition])
        points += [(o, s) for o in once if (s := o.score(PRIMARY)) is not None]
    png, svg = Path(path).with_suffix(".png"), Path(path).with_suffix(".svg")
    with rc_context(_LOOK):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        _plot_scores(left, by_condition)
        _plot_roc_curves(right, by_condition)
        write_atomically(png, partial(figure.savefig, format="png"))
        write_atomically(svg, partial(figure.savefig, format="svg", metadata={"Date": None}))
    return png, svg


_Points = Sequence[tuple[Outcome, float]]


def _plot_scores(axes: "Axes", by_condition: Mapping[str, _Points]) -> None:
    """Each neuron as a point, and the median of each group as a bar."""
    everything = [o for points in by_condition.values() for o, _ in points]
    # Controls stand left of the rest, as 0: one feature each, but not made like a single channel.
    places = sorted({0 if o.kind in CONTROLS else o.m for o in everything})
    lane = _WIDTH / len(by_condition)
    for index, (condition, points) in enumerate(by_condition.items()):
        middle = lane * (index - (len(by_condition) - 1) / 2)
        for column, place in enumerate(places):
            scores = [s for o, s in points if place == (0 if o.kind in CONTROLS else o.m)]
            if scores:
                _plot_group(axes, np.array(scores), column + middle, lane, index)
        axes.plot([], [], _MARKS[index], color=PALETTE[index], markersize=4, label=condition)
    names = [("controls" if place == 0 else str(place)) for place in places]
    axes.set_xticks(range(len(places)), names)
    axes.set_xlim(-0.55, len(places) - 0.45)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("known features")
    axes.set_ylabel("polysemanticity score")
    axes.legend(frameon=False, loc="upper left", handletextpad=0.2)


def _plot_group(axes: "Axes", scores: Array, middle: float, lane: float, index: int) -> None:
    """Points in a lane of the left picture, and their median."""
    # Steps of the golden ratio lie evenly however many there are, in order of score.
    offset = (scores.argsort().argsort() * 0.6180339887 % 1 - 0.5) * lane * 0.7
    axes.plot(
        middle + offset,
        scores,
        _MARKS[index],
        color=PALETTE[index],
        markersize=2.6,
        alpha=0.5,
        markeredgewidth=0,
    )
    ends, median = (middle - lane * 0.42, middle + lane * 0.42), float(np.median(scores))
    axes.plot(ends, (median, median), color="white", linewidth=3.4, zorder=3)
    axes.plot(ends, (median, median), color=PALETTE[index], linewidth=2, zorder=4)


def _plot_roc_curves(axes: "Axes", by_condition: Mapping[str, _Points]) -> None:
    """One feature against more: the ROC curve of each condition."""
    from sklearn.metrics import roc_curve

    axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.8)
    for index, (condition, points) in enumerate(by_condition.items()):
        more, scores = [o.m > 1 for o, _ in points], [s for _, s in points]
        curve: tuple[Any, Any] = ([], [])
        label = f"{condition}: no scores of {'more features' if not any(more) else 'one feature'}"
        if any(more) and not all(more):
            curve = roc_curve(more, scores, drop_intermediate=False)[:2]
            area = auroc(*([s for o, s in points if (o.m > 1) == side] for side in (False, True)))
            label = f"{condition}: AUROC {float(area):.3f}"
        axes.plot(
            *curve, color=PALETTE[index], linestyle=_STROKES[index], linewidth=1.6, label=label
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("neurons of one feature above threshold")
    axes.set_ylabel("neurons of more above threshold")
    axes.legend(frameon=False, loc="lower right", handlelength=2.4)
