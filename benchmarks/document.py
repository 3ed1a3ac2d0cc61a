"""What a benchmark writes: one JSON of ``metadata`` and ``results``, and what holds of it."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = ROOT / "runs" / "benchmarks"
OK = "ok"
LEVELS = ("headline", "table", "detail")

_METADATA: dict[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "quick": (bool,),
    "config": (dict,),
    "utc": (str,),
    "seconds": (float,),
    "commit": (str, type(None)),
    "dirty": (bool, type(None)),
    "cpu": (str,),
    "cores": (int,),
    "threads": (int,),
    "gpu": (str, type(None)),
    "load_before": (float,),
    "cores_used_by_others": (float, type(None)),
    "python": (str,),
    "versions": (dict,),
}
_ROW: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("case", "provider", "shape", "dtype", "unit", "target", "status", "level"), (str,)
    ),
    **dict.fromkeys(("median", "p20", "p80"), (float, type(None))),
    "n": (int,),
    "passed": (bool, type(None)),
}


def check_document(document: Mapping[str, Any]) -> None:
    """Check what a benchmark writes.

    Args:
        document: ``metadata`` and ``results``.

    Raises:
        ValueError: If a key is missing or unknown, a value is of another type, or a row
            contradicts itself.
    """
    _check_keys("document", document, {"metadata": (dict,), "results": (list,)})
    _check_keys("metadata", document["metadata"], _METADATA)
    if not document["results"]:
        raise ValueError("results: expected at least one row")
    for index, entry in enumerate(document["results"]):
        where = f"results[{index}]"
        _check_keys(where, entry, _ROW)
        numbers = [entry[name] for name in ("p20", "median", "p80")]
        if entry["status"] == OK:
            if None in numbers or not all(map(math.isfinite, numbers)) or entry["n"] < 1:
                raise ValueError(f"{where}: a row that is ok needs finite numbers, not {numbers}")
            if sorted(numbers) != numbers:
                raise ValueError(f"{where}: expected p20 <= median <= p80, not {numbers}")
        elif not entry["status"].startswith("FAILED: ") or numbers != [None] * 3 or entry["n"]:
            raise ValueError(f"{where}: a row is ok, or says FAILED and has no numbers: {entry}")
        if entry["level"] not in LEVELS:
            raise ValueError(f"{where}: level has to be one of {', '.join(LEVELS)}: {entry}")
        if (entry["passed"] is None) != (not entry["target"]):
            raise ValueError(f"{where}: target and passed belong together: {entry}")


def machine(metadata: Mapping[str, Any]) -> str:
    """The machine that results are of: its GPU, or its processor and how many cores of it."""
    gpu: str | None = metadata["gpu"]
    return gpu or f"{metadata['cpu']}, {metadata['cores']} cores"


def place(directory: Path, document: Mapping[str, Any]) -> Path:
    """Where the JSON of a benchmark lies: those of a machine together, none in another's place.

    Args:
        directory: Of all results.
        document: What the JSON holds.

    Returns:
        ``DIRECTORY/MACHINE/BENCHMARK.json``.
    """
    metadata = document["metadata"]
    folder = re.sub(r"[^a-z0-9]+", "-", machine(metadata).lower()).strip("-")
    return directory / folder / f"{metadata['benchmark']}.json"


def _check_keys(
    where: str, found: Mapping[str, Any], expected: Mapping[str, tuple[type, ...]]
) -> None:
    if found.keys() != expected.keys():
        odd = ", ".join(sorted(found.keys() ^ expected.keys()))
        raise ValueError(f"{where}: missing or unknown: {odd}")
    for name, types in expected.items():
        if type(found[name]) not in types:
            wanted = " or ".join(t.__name__ for t in types)
            raise ValueError(f"{where}: {name} has to be {wanted}, not {found[name]!r}")


def load_documents(directory: Path = RESULTS) -> list[dict[str, Any]]:
    """Read and check all results, by machine and name.

    Args:
        directory: Holds a folder for each machine, with a JSON file for each benchmark.

    Returns:
        Documents.

    Raises:
        ValueError: If one of them is not what a benchmark writes, or lies where another's belongs.
    """
    documents = []
    for path in sorted(directory.glob("*/*.json")):
        document = json.loads(path.read_text())
        check_document(document)
        if path != (right := place(directory, document)):
            raise ValueError(f"{path}: what it says of its machine belongs into {right}")
        documents.append(document)
    return documents
