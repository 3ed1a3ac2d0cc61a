"""A chart of how similar the images of a neuron are to each other."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polylight.report.look import PALETTE, Spec, count, dress

# A browser slows down at more cells than 128 x 128.
_MOST_CELLS = 128
# Between clusters, as part of the whole side.
_GAP = 0.012


def similarity_matrix(
    similarity: npt.NDArray[np.floating],
    sizes: Sequence[int],
    numbers: Sequence[int],
    *,
    size: int = 360,
    ink: str = "currentColor",
) -> Spec:
    """Show the cosine of every two images, in the order of the clusters, with gaps between them.

    Of more than 128 images, neighbours in a cluster share a cell, which shows their mean.

    Args:
        similarity: Float [N, N] in [-1, 1]; NaN is left blank, and what is below 0 looks
            like 0.
        sizes: Images of each cluster, in order, >= 1; sums to N.
        numbers: Number of each cluster, 0 for invalid images.
        size: Width and height in pixels.
        ink: Colour of text.

    Returns:
        A specification that holds each cosine in hundredths.
    """
    bounds = _cells(sizes)
    cells = len(bounds)
    values = _averaged(similarity, bounds)
    gap = _GAP * max(len(similarity), 1)
    cluster = np.searchsorted(np.cumsum(sizes), bounds[:, 0], side="right")
    starts, ends = (bounds + gap * cluster[:, None]).round(3).T.tolist()
    whole = len(similarity) + gap * (len(sizes) - 1)
    scale = {"domain": [0, whole], "nice": False}
    place = {"type": "quantitative", "scale": scale, "axis": None}
    down = {**place, "scale": {**scale, "reverse": True}}
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1] + gap * np.arange(len(sizes))
    edges = [
        {
            "start": round(float(start), 3),
            "end": round(float(start) + length, 3),
            "middle": round(float(start) + length / 2, 3),
            "cluster": str(number) if number else "-",
            "colour": PALETTE[(number - 1) % len(PALETTE)] if number else ink,
        }
        for start, length, number in zip(first.tolist(), sizes, numbers, strict=True)
    ]
    matrix = {
        # In full, names of four columns would take ten times the room of the numbers.
        "data": {"values": values},
        "transform": [
            {"window": [{"op": "row_number", "as": "at"}]},
            {"filter": "isNumber(datum.data)"},
            {"calculate": "datum.data / 100", "as": "cosine"},
            {"calculate": f"floor((datum.at - 1) / {cells})", "as": "i"},
            {"calculate": f"(datum.at - 1) % {cells}", "as": "j"},
            {"calculate": f"{starts}[datum.i]", "as": "top"},
            {"calculate": f"{ends}[datum.i]", "as": "bottom"},
            {"calculate": f"{starts}[datum.j]", "as": "left"},
            {"calculate": f"{ends}[datum.j]", "as": "right"},
        ],
        "mark": {"type": "rect", "tooltip": None},
        "encoding": {
            "x": {"field": "left", **place},
            "x2": {"field": "right"},
            "y": {"field": "top", **down},
            "y2": {"field": "bottom"},
            "color": {
                "field": "cosine",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "domain": [0, 1], "clamp": True},
                "legend": {
                    "title": "cosine",
                    "orient": "bottom",
                    "gradientLength": min(160, size),
                    "gradientThickness": 8,
                    "values": [0, 0.5, 1],
                },
            },
            "tooltip": [{"field": "cosine", "type": "quantitative", "format": ".2f"}],
        },
    }
    colour = {"field": "colour", "type": "nominal", "scale": None}
    side = {"data": {"values": edges}, "mark": {"type": "rect"}}
    left = {
        "x": {"value": -9},
        "x2": {"value": -4},
        "y": {"field": "start", **down},
        "y2": {"field": "end"},
        "color": colour,
    }
    top = {
        "y": {"value": -9},
        "y2": {"value": -4},
        "x": {"field": "start", **place},
        "x2": {"field": "end"},
        "color": colour,
    }
    label = {
        "data": {"values": edges},
        "mark": {"type": "text", "align": "right", "baseline": "middle", "color": ink},
        "encoding": {
            "x": {"value": -14},
            "y": {"field": "middle", **down},
            "text": {"field": "cluster", "type": "nominal"},
        },
    }
    return dress(
        {
            "layer": [matrix, {**side, "encoding": left}, {**side, "encoding": top}, label],
            "height": size,
        },
        f"Cosine similarity of every two of {count(len(similarity), 'image')}, in the order of "
        f"{count(len(sizes), 'cluster')}.",
        size,
        ink,
    )


def _cells(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Divide clusters in cells of neighbours, none over two clusters: first and end, [C, 2]."""
    ends = np.cumsum([0, *sizes])
    length = 1
    while sum(-(-size // length) for size in sizes) > max(_MOST_CELLS, len(sizes)):
        length += 1
    return np.array(
        [
            (start, min(start + length, end))
            for first, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
            for start in range(first, end, length)
        ],
        dtype=np.int64,
    ).reshape(-1, 2)


def _averaged(
    similarity: npt.NDArray[np.floating], bounds: npt.NDArray[np.int64]
) -> list[int | str]:
    """Average a matrix over cells: hundredths, row by row; "" where there is no number."""
    if not len(bounds):
        return []
    # Vega knows no null among bare numbers.
    starts, lengths = bounds[:, 0], np.diff(bounds)
    total = np.add.reduceat(np.add.reduceat(similarity, starts, axis=0), starts, axis=1)
    mean = total / (lengths * lengths.T)
    return ["" if np.isnan(value) else round(100 * value) for value in mean.ravel().tolist()]
