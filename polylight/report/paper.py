"""A neuron on paper: its pictures as files, its numbers as text, and where each image is."""

import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from polylight.report import charts, words
from polylight.report.content import Cluster, NeuronDetail, NeuronSummary, Run
from polylight.report.photos import write_photos
from polylight.report.rasters import colour, heat_map, image_map, to_jpeg
from polylight.report.verdict import verdict

INK = "#3c434a"
"""Colour of the text in charts."""

GAP = 1.2
"""Between images, in millimetres."""

CARD_SIDE, _CARD_IMAGES = 10.6, 7
# Millimetres. Captions under tiles of less than the smallest side could not be read. Two neurons
# share a page if their images fit in the half of one.
_ROOM, _LABEL, _CAPTION, _BELOW = 174.0, 4.6, 3.2, 1.8
_HALF_PAGE, _HALF_SIDES = 50.0, (17.0, 10.5)
_WHOLE_PAGE, _WHOLE_SIDES = 168.0, (28.0, 8.0)
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
}

Data = dict[str, Any]
"""What the template reads: names with text, numbers, lists and the like."""


@dataclass(frozen=True)
class Block:
    """Where the images of a cluster are; in millimetres from the left and the top of the grid."""

    left: float
    top: float
    width: float
    columns: int
    shown: int
    """How many of its images have a place."""


@dataclass(frozen=True)
class Grid:
    """How the images of a neuron are laid out, in millimetres."""

    side: float
    """Of a tile."""
    height: float
    blocks: Sequence[Block]
    """One for each cluster."""


def lay_out(sizes: Sequence[int]) -> Grid:
    """Find the largest tiles with which a neuron fits on half a page, or else on a whole one.

    Args:
        sizes: How many images each cluster has.

    Returns:
        The grid. Where even the smallest tiles would need more than a page, the largest clusters
        are cut to as many full rows as leave room for all.
    """
    for room, sides in ((_HALF_PAGE, _HALF_SIDES), (_WHOLE_PAGE, _WHOLE_SIDES)):
        fewest, most = (int((_ROOM + GAP) / (side + GAP)) for side in sides)
        for columns in range(fewest, most + 1):
            grid = _grid(sizes, columns)
            if grid.height <= room:
                return grid
    rows = max(math.ceil(size / most) for size in sizes)
    while rows > 1 and grid.height > _WHOLE_PAGE:
        rows -= 1
        grid = _grid([min(size, rows * most) for size in sizes], most)
    return grid


def head(summary: NeuronSummary) -> Data:
    """Gather what every mention of a neuron shows."""
    return {
        "name": summary.name,
        "target": f"neuron-{summary.slug}",
        "score": words.shown(summary, "score"),
        "features": words.counted(summary.values["k"] or 0, "feature"),
        "cells": {
            "interval": words.interval(summary),
            **{c: words.shown(summary, c) for c in COLUMNS if c != "interval"},
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
        "sentences": verdict(summary)[:2],
        "place": values["score"],
        "low": values["score_low"],
        "high": values["score_high"],
        "height": grid.height,
        "side": grid.side,
        "clusters": [
            _cluster(cluster, block, tiles)
            for cluster, block in zip(detail.clusters, grid.blocks, strict=True)
        ],
        "facts": [
            *((title, words.shown(summary, column)) for column, title in _FACTS.items()),
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


def _cluster(cluster: Cluster, block: Block, tiles: Mapping[int, Data]) -> Data:
    """Give a cluster its place, its label and its images."""
    title = "Not valid"
    if cluster.number:
        title = f"Feature {cluster.number}" if block.width > _NARROW else f"{cluster.number}"
    if cluster.weight is not None and block.width > 2 * _NARROW:
        title += f", {words.percent(cluster.weight)} of its strength"
    if block.shown < len(cluster.pictures):
        title += f"; {block.shown} of {len(cluster.pictures)} images"
    return {
        "title": title,
        "colour": colour(cluster.number),
        "left": block.left,
        "top": block.top,
        "width": block.width,
        "columns": block.columns,
        "tiles": [tiles[picture.tile] for picture in cluster.pictures[: block.shown]],
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
        spec = {
            **charts.bic_curve(detail.bic, summary.values["k"], width=150, ink=INK),
            "height": 84,
        }
        svg = charts.to_svg(spec).encode()
        yield {
            "file": _write(folder, f"{summary.position}-bic.svg", svg),
            "alt": spec["description"],
            "caption": "BIC by number of clusters",
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
    side = (_ROOM + GAP) / columns - GAP
    blocks, free, top, deepest = [], columns, 0.0, 0.0
    for size in sizes:
        if size > free:
            top, free, deepest = top + deepest, columns, 0.0
        across = min(size, columns)
        left = (columns - free) * (side + GAP)
        blocks.append(Block(left, top, across * (side + GAP) - GAP, across, size))
        rows = math.ceil(size / columns)
        deepest = max(deepest, _LABEL + rows * (side + _CAPTION) + _BELOW)
        free -= across
    return Grid(side, top + deepest, blocks)
