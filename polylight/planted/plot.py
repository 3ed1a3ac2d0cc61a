"""The proof of the score as a figure: scores against number of features, and ROC curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from polylight.errors import InputError
from polylight.inspect.palette import PALETTE
from polylight.planted.outcome import CONTROLS, PRIMARY, Outcome, first_seeds
from polylight.planted.statistics import Array, auroc
from polylight.run.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (7.2, 3.2)
_DPI = 200
_INK, _FAINT = "#1f2328", "#8c959f"
# Colours, marks and strokes all differ, so that a grey print can be read too.
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STROKES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MOST_RECIPES = len(_MARKS)
"""How many recipes a figure can tell apart."""
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


def draw(outcomes: Sequence[Outcome], path: str | Path) -> tuple[Path, Path]:
    """Draw the primary score against the number of features, and its ROC curves, by recipe.

    Args:
        outcomes: Of any subjects, layers and seeds; of each neuron the lowest seed is drawn.
        path: Name of the figure; its ending is replaced by ``.png`` and ``.svg``.

    Returns:
        The two files that were written.

    Raises:
        InputError: If no neuron has a primary score, or there are more recipes than colours.
    """
    # It is slow to import, and only this needs it.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = [(o, s) for o in first_seeds(outcomes) if (s := o.score(PRIMARY)) is not None]
    recipes = list(dict.fromkeys(o.recipe for o, _ in points))
    if not 0 < len(recipes) <= len(_MARKS):
        raise InputError(
            f"a figure needs scores '{PRIMARY}' of 1 to {len(_MARKS)} recipes, but there are "
            f"{len(recipes)}."
        )
    png, svg = Path(path).with_suffix(".png"), Path(path).with_suffix(".svg")
    with rc_context(_LOOK):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        _draw_scores(left, points, recipes)
        _draw_curves(right, points, recipes)

        def save_png(file: BinaryIO) -> None:
            figure.savefig(file, format="png")

        def save_svg(file: BinaryIO) -> None:
            figure.savefig(file, format="svg", metadata={"Date": None})

        write_atomically(png, save_png)
        write_atomically(svg, save_svg)
    return png, svg


def roc_curve(negatives: Array, positives: Array) -> tuple[Array, Array]:
    """Trace the ROC curve: a corner for each threshold, equal scores being one slope.

    Args:
        negatives: Scores [n-], n- > 0.
        positives: Scores [n+], n+ > 0.

    Returns:
        Share of negatives and share of positives at or above each threshold, from 0 to 1.
    """
    thresholds = np.unique(np.concatenate([negatives, positives]))[::-1, None]
    rates = [(side >= thresholds).mean(1) for side in (negatives, positives)]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true


def _draw_scores(
    axes: "Axes", points: Sequence[tuple[Outcome, float]], recipes: Sequence[str]
) -> None:
    """Each neuron as a point, and the median of each group as a bar."""
    numbers = sorted({o.m for o, _ in points if o.kind not in CONTROLS})
    controls = any(o.kind in CONTROLS for o, _ in points)
    # Controls stand left of the rest: one feature each, but not made like a single channel.
    places = ([0] if controls else []) + numbers
    lane = _WIDTH / len(recipes)
    for index, recipe in enumerate(recipes):
        middle = lane * (index - (len(recipes) - 1) / 2)
        for column, place in enumerate(places):
            scores = [
                s
                for o, s in points
                if o.recipe == recipe and place == (0 if o.kind in CONTROLS else o.m)
            ]
            if scores:
                _draw_group(axes, np.array(scores), column + middle, lane, index)
        axes.plot([], [], _MARKS[index], color=PALETTE[index], markersize=4, label=recipe)
    names = [("controls" if place == 0 else str(place)) for place in places]
    axes.set_xticks(range(len(places)), names)
    axes.set_xlim(-0.55, len(places) - 0.45)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("known features")
    axes.set_ylabel("polysemanticity score")
    axes.legend(frameon=False, loc="upper left", handletextpad=0.2)


def _draw_group(axes: "Axes", scores: Array, middle: float, lane: float, index: int) -> None:
    """Points in a lane of the left picture, and their median."""
    # Steps of the golden ratio spread evenly however many there are, in order of score.
    spread = (scores.argsort().argsort() * 0.6180339887 % 1 - 0.5) * lane * 0.7
    axes.plot(
        middle + spread,
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


def _draw_curves(
    axes: "Axes", points: Sequence[tuple[Outcome, float]], recipes: Sequence[str]
) -> None:
    """One feature against more: the ROC curve of each recipe."""
    axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.8)
    for index, recipe in enumerate(recipes):
        one = np.array([s for o, s in points if o.recipe == recipe and o.m == 1])
        more = np.array([s for o, s in points if o.recipe == recipe and o.m > 1])
        look: dict[str, Any] = {
            "color": PALETTE[index],
            "linestyle": _STROKES[index],
            "linewidth": 1.6,
        }
        if one.size and more.size:
            area = float(auroc(one, more))
            axes.plot(*roc_curve(one, more), **look, label=f"{recipe}: AUROC {area:.3f}")
        else:
            missing = "one feature" if not one.size else "more features"
            axes.plot([], [], **look, label=f"{recipe}: no scores of {missing}")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("neurons of one feature above threshold")
    axes.set_ylabel("neurons of more above threshold")
    axes.legend(frameon=False, loc="lower right", handlelength=2.4)
