"""The numbers of all neurons as the table in a browser reads them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polylight.photos.above import ABOVE_PHOTOS
from polylight.report.content import NeuronDetail, Run
from polylight.report.gather import THUMB
from polylight.report.words import percent

# Columns of the table in the browser; the layer is an index, and more digits than these are noise.
_COLUMNS = (
    "score",
    "score_low",
    "score_high",
    "separation",
    "p_value",
    "q_value",
    "k",
    "k_stability",
    "k_eff",
    "coverage",
    "score_paper",
    "num_images",
    "status",
)
_DIGITS = 6


@dataclass(frozen=True)
class Layout:
    """Where on a neuron's sheet its images are."""

    columns: int
    """Tiles in a row of the sheet."""
    sizes: Sequence[int]
    """How many images each cluster has, in the order of the sheet; the typical one comes first."""
    num_valid: int
    """How many of them are features; one more is of images that are not valid."""
    thumbs: int
    """How many images its thumbnail shows."""

    @classmethod
    def of(cls, detail: NeuronDetail) -> "Layout":
        """Keep of a neuron's page what the table needs."""
        sizes = [len(cluster.pictures) for cluster in detail.clusters]
        valid = sum(cluster.number > 0 for cluster in detail.clusters)
        return cls(detail.columns, sizes, valid, detail.thumbs)

    @property
    def typical(self) -> list[int]:
        """Tile of each feature's typical image."""
        return [sum(self.sizes[:i]) for i in range(self.num_valid)]


def write_table(run: Run, path: Path, layouts: Mapping[int, Layout]) -> None:
    """Write the table's data, as columns, where a page can read it without a request.

    Args:
        run: The run.
        path: The script to write.
        layouts: By position, where a neuron's images are; of neurons that have a page.

    Raises:
        OSError: If it cannot be written.
    """
    places = {layer.name: i for i, layer in enumerate(run.layers)}
    columns: dict[str, list[Any]] = {
        "neuron": [neuron.name for neuron in run.neurons],
        "slug": [neuron.slug for neuron in run.neurons],
        "layer": [places[neuron.layer] for neuron in run.neurons],
        "activation": [_rounded(neuron.median_activation) for neuron in run.neurons],
        "shares": [[percent(weight) for weight in neuron.weights] for neuron in run.neurons],
    }
    placed = [layouts.get(neuron.position, _NOTHING) for neuron in run.neurons]
    columns["across"] = [layout.columns for layout in placed]
    columns["sizes"] = [layout.sizes for layout in placed]
    columns["thumbs"] = [layout.thumbs for layout in placed]
    for name in (*_COLUMNS, *([ABOVE_PHOTOS] if run.photos else [])):
        columns[name] = [_rounded(neuron.values[name]) for neuron in run.neurons]
    layers = [
        {"name": layer.name, "slug": layer.slug, "count": len(layer.positions)}
        for layer in run.layers
    ]
    data = {"layers": layers, "thumb": THUMB, "reported": run.reported, "columns": columns}
    # A name may hold "</script>"; escaped, the file could also stand inside a page.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(f"window.POLYLIGHT = {text};\n", encoding="ascii")


_NOTHING = Layout(0, (), 0, 0)


def _rounded(value: Any) -> Any:
    """Shorten a number; what is none stays as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
