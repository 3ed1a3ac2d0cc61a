"""What ``polylight validate`` has found, for the docs.

``python -m benchmarks.validation RUN`` keeps the result of a validation under
``benchmarks/validation``, from where ``python -m benchmarks.render`` takes it, and its figure under
``docs/images``.
"""

import json
import shutil
import sys
from pathlib import Path

from benchmarks.machine import ROOT
from polylight.planted.outcome import PRIMARY
from polylight.planted.table import markdown

KEPT = ROOT / "benchmarks" / "validation"
FIGURE = ROOT / "docs" / "images" / "validation.png"


def keep(directory: Path) -> None:
    """Copy the result and the figure of a validation."""
    KEPT.mkdir(exist_ok=True)
    text = (directory / "validation.json").read_text()
    document = json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))
    for outcome in document["outcomes"]:
        # What the numbers of a neuron were worked out from stays in its run.
        for per_image in ("label", "component", "activation"):
            del outcome[per_image]
    for scope in document["scopes"]:
        # Other scores of a layer can be worked out from its outcomes.
        if scope["subject"] is not None:
            scope["scores"] = {PRIMARY: scope["scores"][PRIMARY]}
    (KEPT / "validation.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    shutil.copy(directory / "validation.png", FIGURE)


def kept() -> str:
    """The tables of the validation that is kept, as Markdown; nothing where there is none."""
    path = KEPT / "validation.json"
    return markdown(json.loads(path.read_text())) if path.is_file() else ""


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
