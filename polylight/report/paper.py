"""A neuron on paper: its pictures as files, its numbers as text, and where each image is."""

import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from polylight.photos.above import ABOVE_PHOTOS
from polylight.report import charts, words
from polylight.report.content import Cluster, NeuronDetail, NeuronSummary, Run
from polylight.report.explanation import explain
from polylight.report.photos import write_photos
from polylight.report.rasters import colour, heat_map, image_map, to_jpeg

INK = "#3c434a"
"""Colour of the text in charts."""

GAP = 1.2
"""Between images, in millimetres."""

CARD_SIDE, _CARD_IMAGES = 10.4, 7
# Millimetres: of the page, of a tile (largest, middle, smallest), of what is below a tile and
# around a row of clusters, and of all rows of a neuron that shares a page with another.
_WIDTH, _SIDES, _CAPTION, _AROUND, _HALF_PAGE = 174.0, (17.0, 13.0, 10.0), 3.2, 6.4, 49.0
_PHOTOS, _PHOTO_PIXELS = 6, 200
_SIMILAR = 3
# Of a block that has no room for its whole label.
_NARROW = 18.0
COLUMNS = {
    "score": "score",
    "interval": "95 %",
    "separation": "separation",
    "k": "K",
    "k_eff": "effective features",
    "p_value": "p",
    "q_value": "q",
    "num_images": "images",
}
"""Of the table of neurons, with their titles."""

_FACTS = {
    "k_eff": "effective features",
    "k_stability": "K stability",
    "separation": "separation",
    "p_value": "p",
    "q_value": "q of its layer",
    "coverage": "coverage",
    "score_paper": "Alic et al. (2025) score",
    ABOVE_PHOTOS: "images above every photo",
}

Data = dict[str, Any]
"""What the template reads: names with text, numbers, lists and the like."""


@dataclass(frozen=True)
class Grid:
    """How the images of a neuron are laid out."""

    columns: int
    side: float
    """Of a tile, in millimetres."""
    rows: Sequence[Sequence[int]]
    """The clusters, by their index, that stand side by side; one that stands alone may take
    several rows of tiles."""
    height: float
    """In millimetres."""
    fits: bool
    """Whether the neuron takes no more than half a page."""


def lay_out(sizes: Sequence[int]) -> Grid:
    """Find the largest tiles with which a neuron fits on half a page.

    Args:
        sizes: How many images each cluster has.

    Returns:
        The grid; of tiles of middle size where not even small ones would fit.
    """
    fewest, middle, most = (int((_WIDTH + GAP) / (side + GAP)) for side in _SIDES)
    for columns in range(fewest, most + 1):
        grid = _grid(sizes, columns)
        if grid.fits:
            return grid
    return _grid(sizes, middle)


def head(summary: NeuronSummary) -> Data:
    """Gather what every mention of a neuron shows."""
    return {
        "name": summary.name,
        "target": f"neuron-{summary.slug}",
        "score": words.score(summary),
        "features": words.counted(summary.values["k"] or 0, "feature"),
        "cells": {
            "interval": words.interval(summary),
            **{c: words.shown(summary, c) for c in COLUMNS if c != "interval"},
            "score": words.score(summary),
        },
    }


def write_tiles(
    summary: NeuronSummary, detail: NeuronDetail, images: Sequence[Image.Image], folder: Path
) -> dict[int, Data]:
    """Write a neuron's images, each as a file of its own.

    Args:
        summary: The neuron.
        detail: Its clusters.
        images: Its images, in the order of ``detail.pictures``.
        folder: Where to write them.

    Returns:
        Each picture by its place on the neuron's sheet.
    """
    files = iter(images)
    return {
        picture.tile: {
            "file": _write(folder, f"{summary.position}-{picture.tile}.jpg", to_jpeg(next(files))),
            "alt": f"Image {picture.image + 1} of {summary.name}, "
            f"{f'feature {cluster.number}' if cluster.number else 'not valid'}",
            "activation": words.number(picture.activation),
            "medoid": picture.is_medoid,
        }
        for cluster in detail.clusters
        for picture in cluster.pictures
    }


def strip(detail: NeuronDetail, tiles: Mapping[int, Data]) -> list[list[Data]]:
    """Choose the images that stand for a neuron, of every feature as many as there is room for.

    Args:
        detail: Its clusters.
        tiles: Its pictures, by their place on the sheet.

    Returns:
        The pictures of each feature that has any, the strongest feature first.
    """
    valid = [c.pictures for c in detail.clusters if c.number] or [detail.pictures]
    in_turn = [picture for rank in zip_longest(*valid) for picture in rank if picture is not None]
    chosen = {picture.tile for picture in in_turn[:_CARD_IMAGES]}
    groups = [[tiles[p.tile] for p in pictures if p.tile in chosen] for pictures in valid]
    return [group for group in groups if group]


def entry(
    run: Run,
    summary: NeuronSummary,
    detail: NeuronDetail,
    images: Sequence[Image.Image],
    tiles: Mapping[int, Data],
    shown: Container[int],
    folder: Path,
) -> Data:
    """Gather what a neuron's part of the document shows, and draw its charts.

    Args:
        run: The run that it is of.
        summary: The neuron.
        detail: Its clusters.
        images: Its images, in the order of ``detail.pictures``.
        tiles: The same as files, by their place on the sheet.
        shown: Positions of the neurons that have such a part and can be linked to.
        folder: Where to write pictures.

    Returns:
        Texts, pictures and places; the files of photos are yet to be written.
    """
    values = summary.values
    grid = lay_out([len(cluster.pictures) for cluster in detail.clusters])
    similar = [(run.neurons[other.position], other.cosine) for other in summary.similar[:_SIMILAR]]
    return {
        **head(summary),
        "sentences": explain(summary, detail)[:2],
        "place": summary.score,
        "low": summary.interval[0] if summary.interval else None,
        "high": summary.interval[1] if summary.interval else None,
        "fits": grid.fits,
        "side": grid.side,
        "rows": [[_cluster(detail.clusters[i], grid, tiles) for i in row] for row in grid.rows],
        "facts": [
            *(
                (title, words.shown(summary, column))
                for column, title in _FACTS.items()
                if column != ABOVE_PHOTOS or values.get(column) is not None
            ),
            (
                "median activation",
                f"{words.number(summary.median_activation)} "
                f"(random images {words.number(values['baseline'])})",
            ),
        ],
        "panels": list(_panels(summary, detail, images, folder)),
        "photos": _photos(detail),
        "similar": [
            {
                "name": other.name,
                "target": f"neuron-{other.slug}" if other.position in shown else None,
                "cosine": words.number(cosine, ".2f"),
            }
            for other, cosine in similar
        ],
    }


def write_run_photos(run: Run, entries: Collection[Data], folder: Path) -> None:
    """Write the photos of all neurons; one that cannot be read loses its file.

    Args:
        run: The run.
        entries: Of :func:`entry`, which are changed.
        folder: Where to write them.
    """
    shown = [photo for each in entries for photo in each["photos"]]
    numbers = {photo["number"] for photo in shown}
    if run.photos is not None and numbers:
        write_photos(run.photos, folder, numbers)
    readable = {number for number in numbers if _reduce(folder / f"{number}.jpg")}
    for photo in shown:
        if photo["number"] not in readable:
            photo["file"] = None


def _cluster(cluster: Cluster, grid: Grid, tiles: Mapping[int, Data]) -> Data:
    """Give a cluster its width, its label and its images."""
    columns = min(len(cluster.pictures), grid.columns)
    width = columns * (grid.side + GAP) - GAP
    title = "Not valid"
    if cluster.number:
        title = f"Feature {cluster.number}" if width > _NARROW else f"{cluster.number}"
    if cluster.weight is not None and width > 2 * _NARROW:
        title += f", {words.percent(cluster.weight)} of its strength"
    return {
        "title": title,
        "colour": colour(cluster.number),
        "width": width,
        "columns": columns,
        "tiles": [tiles[picture.tile] for picture in cluster.pictures],
    }


def _panels(
    summary: NeuronSummary, detail: NeuronDetail, images: Sequence[Image.Image], folder: Path
) -> Iterator[Data]:
    """Draw what a neuron has of similarities, BIC and map."""
    sizes = [len(cluster.pictures) for cluster in detail.clusters]
    if len(images) > 1:
        yield {
            "file": _write(
                folder, f"{summary.position}-matrix.png", heat_map(detail.similarity, sizes)
            ),
            "alt": f"Similarity of the images of {summary.name} to each other, by feature",
            "caption": "similarity of its images",
        }
    if detail.bic:
        k = summary.values["k"]
        by_separation = k == 1 and summary.reported == "score"
        spec = charts.bic_curve(detail.bic, k, width=140 if detail.photos else 240, ink=INK)
        # The caption says what the label would, which lies over the curve where that is small.
        layers = [layer for layer in spec["layer"] if layer["mark"]["type"] != "text"]
        svg = charts.to_svg({**spec, "layer": layers, "height": 84}).encode()
        yield {
            "file": _write(folder, f"{summary.position}-bic.svg", svg),
            "alt": spec["description"],
            "caption": "BIC by K"
            if k is None
            else "BIC by K; K = 1 because of its separation"
            if by_separation
            else f"BIC by K; K = {k} was chosen",
        }
    if len(images) > 1:
        yield {
            "file": _write(folder, f"{summary.position}-map.jpg", image_map(detail, images)),
            "alt": f"Images of {summary.name}, the more alike the nearer",
            "caption": "map of its images",
        }


def _photos(detail: NeuronDetail) -> list[Data]:
    """Choose the photos that stand for a neuron, in turn of each feature that has any."""
    valid = [[(c.number, photo) for photo in c.photos] for c in detail.clusters if c.number]
    if not valid and detail.photos is not None:
        valid = [[(0, photo) for photo in detail.photos.strongest]]
    in_turn = [each for rank in zip_longest(*valid) for each in rank if each is not None]
    return [
        {
            "number": photo.number,
            "file": f"/{photo.number}.jpg",
            "alt": f"Photo {photo.name}" + (f", like feature {number}" if number else ""),
            "colour": colour(number),
        }
        for number, photo in sorted(in_turn[:_PHOTOS], key=lambda each: each[0])
    ]


def _reduce(path: Path) -> bool:
    """Reduce a photo to what can be seen on paper; tell whether it can be read."""
    try:
        with Image.open(path) as photo:
            small = photo.convert("RGB")
            small.thumbnail((_PHOTO_PIXELS, _PHOTO_PIXELS))
    except (OSError, SyntaxError, ValueError):
        return False
    path.write_bytes(to_jpeg(small))
    return True


def _write(folder: Path, name: str, content: bytes) -> str:
    """Write a picture; return its address in the document."""
    (folder / name).write_bytes(content)
    return f"/{name}"


def _grid(sizes: Sequence[int], columns: int) -> Grid:
    """Set clusters side by side as long as they fit, each with its tiles below a label."""
    side = (_WIDTH + GAP) / columns - GAP
    rows: list[list[int]] = []
    free, height = 0, 0.0
    for cluster, size in enumerate(sizes):
        if size > free:
            rows.append([])
            free = columns
            height += _AROUND + math.ceil(size / columns) * (side + _CAPTION)
        rows[-1].append(cluster)
        free -= size
    return Grid(columns, side, rows, height, height <= _HALF_PAGE)
