"""What ``polylight validate`` has found, for the docs.

``python -m benchmarks.validation RUN`` keeps the result of a validation under
``benchmarks/validation``, from where ``python -m benchmarks.render`` takes it, and its figure under
``docs/images``.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from polylight.planted.outcome import PRIMARY

KEPT = ROOT / "benchmarks" / "validation"
FIGURE = ROOT / "docs" / "images" / "validation.png"
_LABELS = {
    "auroc": "AUROC, one feature against more",
    "auroc_screened": "AUROC, screened components",
    "spearman": "Spearman with the number of features",
    "spearman_screened": "Spearman, screened components",
    "above_mean": "composites above the mean of their components",
    "above_highest": "composites above the highest of their components",
    "facet_recall": "planted features that images show",
    "controls_difference": "farthest control less single channels",
}
_MEASURES = ("auroc", "spearman", "above_mean", "above_highest")


def keep(directory: Path) -> None:
    """Copy the result and the figure of a validation."""
    KEPT.mkdir(exist_ok=True)
    text = (directory / "validation.json").read_text()
    report = json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))
    for outcome in report["outcomes"]:
        # What the numbers of a neuron were worked out from stays in its run.
        for per_image in ("labels", "winner", "activation"):
            del outcome[per_image]
    for scope in report["scopes"]:
        # Other scores of a layer can be worked out from its outcomes.
        if scope["subject"] is not None:
            scope["scores"] = {PRIMARY: scope["scores"][PRIMARY]}
    (KEPT / "validation.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    shutil.copy(directory / "validation.png", FIGURE)


def tables(report: Mapping[str, Any]) -> str:
    """Targets, layers, scores and reliability of a validation, as Markdown."""
    ours = report["verdicts"][0]["recipe"]
    overall = {s["recipe"]: s for s in report["scopes"] if s["subject"] is None}
    components = [
        _against_targets(report["verdicts"], overall, ours),
        _by_layer([s for s in report["scopes"] if s["recipe"] == ours and s["layer"]]),
        _by_count([*report.get("by_count", []), overall[ours]]),
        _by_score(overall),
        _reliability(report["reliability"]),
    ]
    return "\n\n".join(component for component in components if component)


def _against_targets(
    verdicts: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], ours: str
) -> str:
    recipes = [ours, *(name for name in overall if name != ours)]
    by_recipe = {(v["recipe"], v["name"]): v for v in verdicts}
    rows = []
    for name, label in _LABELS.items():
        mine = by_recipe[ours, name]
        sign = "within" if "difference" in name else ">="
        verdict = {None: "", True: ", met", False: ", missed"}[mine["met"]]
        values = [_number(by_recipe[recipe, name]["value"]) for recipe in recipes]
        rows.append([label, *values, f"{sign} {mine['target']:g}{verdict}", str(mine["n"])])
    return _markdown(["all layers", *recipes, "target", "n"], rows)


def _by_layer(scopes: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for scope in scopes:
        score = scope["scores"]["polylight"]
        rows.append(
            [
                scope["subject"],
                f"`{scope['layer']}`",
                str(sum(scope["neurons"].values())),
                _interval(score["every"]["auroc"]),
                _interval(score["every"]["spearman"]),
                _number(score["every"]["spearman_most"]["value"]),
                _number(score["above_mean"]["value"]),
                _number(score["above_highest"]["value"]),
                _number(scope["images"]["facet_recall"]["value"]),
            ]
        )
    titles = ["subject", "layer", "neurons", "AUROC", "Spearman", "of at most"]
    titles += ["> mean", "> highest", "features"]
    return _markdown(titles, rows)


def _by_count(scopes: Sequence[Mapping[str, Any]]) -> str:
    """What fewer images do; nothing where that was not asked for."""
    if len(scopes) < 2:
        return ""
    rows = []
    for scope in scopes:
        score = scope["scores"][PRIMARY]
        values = [
            score["every"]["auroc"],
            score["every"]["spearman"],
            score["screened"]["spearman"],
            score["above_mean"],
            score["above_highest"],
            scope["images"]["facet_recall"],
        ]
        name = "all" if scope is scopes[-1] else scope["recipe"]
        rows.append([name, *(_number(value["value"]) for value in values)])
    titles = ["images of a neuron", "AUROC", "Spearman", "Spearman, screened"]
    titles += ["> mean", "> highest", "features"]
    return _markdown(titles, rows)


def _by_score(overall: Mapping[str, Any]) -> str:
    rows = []
    for recipe, scope in overall.items():
        for name, score in scope["scores"].items():
            values = [
                score["every"]["auroc"]["value"],
                score["every"]["spearman"]["value"],
                score["above_mean"]["value"],
                score["above_highest"]["value"],
            ]
            if any(value is not None for value in values):
                rows.append([recipe, name, *map(_number, values)])
    return _markdown(["images", "score", "AUROC", "Spearman", "> mean", "> highest"], rows)


def _reliability(found: Mapping[str, Any]) -> str:
    rows = []
    seeds = found["seeds"]
    if seeds["neurons"]:
        value = f"Spearman {_number(seeds['spearman'])}, ICC {_number(seeds['icc'])}"
        rows.append(["single channels, another seed", str(seeds["neurons"]), value])
    for subject, again in found.get("embedders", {}).items():
        value = f"Spearman {_number(again['spearman'])}, ICC {_number(again['icc'])}"
        what = f"{subject}, same images embedded by {again['second']}"
        rows.append([what, str(again["neurons"]), value])
    if checked := found.get("calibration"):
        value = f"{checked['coverage']:.1%}, {checked['width']:.2f} wide, hold the others' mean"
        rows.append([f"intervals, {checked['seeds']} seeds", str(checked["neurons"]), value])
    for subject, strength in found.get("strength", {}).items():
        value = f"{strength['above_best']:.1%} driven harder than by the best photo"
        what = f"{subject}, single channels against {strength['photos']} photos"
        rows.append([what, str(len(strength["percentile"])), value])
    return _markdown(["the same again", "neurons", "found"], rows)


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    low, high = estimate.get("low"), estimate.get("high")
    ends = f" [{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""
    return f"{_number(estimate['value'])}{ends}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def kept() -> str:
    """The tables of the validation that is kept; nothing where there is none."""
    path = KEPT / "validation.json"
    return tables(json.loads(path.read_text())) if path.is_file() else ""


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
