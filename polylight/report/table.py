"""The numbers of all neurons as the table in a browser reads them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polylight.report.content import Run
from polylight.report.gather import THUMB

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


def write_table(run: Run, path: Path, thumbs: Mapping[int, int]) -> None:
    """Write the table's data, as columns, where a page can read it without a request.

    Args:
        run: The run.
        path: The script to write.
        thumbs: By position, how many medoids a neuron's thumbnail shows.

    Raises:
        OSError: If it cannot be written.
    """
    places = {layer.name: i for i, layer in enumerate(run.layers)}
    columns: dict[str, list[Any]] = {
        "neuron": [neuron.name for neuron in run.neurons],
        "slug": [neuron.slug for neuron in run.neurons],
        "layer": [places[neuron.layer] for neuron in run.neurons],
        "activation": [_rounded(neuron.median_activation) for neuron in run.neurons],
        "thumbs": [thumbs.get(neuron.position, 0) for neuron in run.neurons],
    }
    for name in _COLUMNS:
        columns[name] = [_rounded(neuron.values[name]) for neuron in run.neurons]
    layers = [
        {"name": layer.name, "slug": layer.slug, "count": len(layer.positions)}
        for layer in run.layers
    ]
    data = {"layers": layers, "thumb": THUMB, "columns": columns}
    # A name may hold "</script>"; escaped, the file could also stand inside a page.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(f"window.POLYLIGHT = {text};\n", encoding="ascii")


def _rounded(value: Any) -> Any:
    """Shorten a number; what is none stays as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
