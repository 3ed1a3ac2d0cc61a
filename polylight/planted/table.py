"""The tables of a validation, from ``validation.json``: for the terminal, and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from polylight.planted.outcome import CONTROLS, PRIMARY

MEASURES = {
    "auroc": "AUROC, one feature against more",
    "auroc_within_layers": "AUROC within layers",
    "auroc_without_controls": "AUROC without controls",
    "auroc_screened": "AUROC, screened components",
    "spearman": "Spearman with the number of features",
    "spearman_bound": "Spearman, most that ties allow",
    "spearman_within_layers": "Spearman within layers",
    "spearman_without_controls": "Spearman without controls",
    "spearman_screened": "Spearman, screened components",
    "spearman_bound_screened": "the same, most that ties allow",
    "above_mean": "composites above the mean of their components",
    "above_highest": "composites above the highest of their components",
    "min_difference": "minima less single channels",
    "copies_difference": "copies less single channels",
    "near_duplicates_difference": "near-duplicates less single channels",
    "controls_difference": "farthest control less single channels",
    "near_duplicates_auroc": "AUROC, two components against near-duplicates",
    "seeds_spearman": "Spearman of two seeds, single channels",
    "seeds_icc": "ICC of two seeds, single channels",
    "feature_recall": "planted features that valid images show",
    "feature_recall_all_images": "planted features that any image shows",
    "valid": "images that are valid",
    "adjusted_rand": "clusters and components, adjusted Rand index",
    "k_exact": "K is the number of features",
    "k_error": "K less the number of features",
}
"""What is printed, and a target may be set for, by name (:mod:`polylight.planted.measures`)."""
AT_MOST = (*(f"{kind}_difference" for kind in (*CONTROLS, "controls")), "k_error")
"""Measures whose size has to be no more than the target; the others have to be no less."""
_SCORES = {
    "auroc": "AUROC",
    "spearman": "Spearman",
    "above_mean": "> mean",
    "above_highest": "> highest",
}
_FEATURES = {"feature_recall": "features"}
_SCREENED = {"auroc_screened": "AUROC, screened", "spearman_screened": "Spearman, screened"}
_CONDITIONS = _SCORES | _FEATURES | _SCREENED | {"controls_difference": "controls"}
_LAYERS = _SCORES | {"spearman_bound": "Spearman at most"} | _FEATURES


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(document: Mapping[str, Any], *, every_measure: bool) -> list[Table]:
    """Lay a validation out.

    Args:
        document: What ``validation.json`` holds.
        every_measure: Whether the first table has all measures, or only those with a target.

    Returns:
        Measures of the condition that is validated, then conditions, layers, numbers of images,
        scores, and reliability; without tables that have nothing to compare.
    """
    overall = [scope for scope in document["scopes"] if scope["subject"] is None]
    ours = overall[0]
    layers = [s for s in document["scopes"] if s["layer"] and s["condition"] == ours["condition"]]
    images = [*document["by_image_count"], {**ours, "condition": "all"}]
    scores = [(scope, name) for scope in overall for name in scope["scores"]]

    def rows(scopes: Sequence[Any], names: Sequence[str], columns: Mapping[str, str]) -> list[Any]:
        return [[*(s[n] for n in names), *_values(s, PRIMARY, columns)] for s in scopes]

    found = [
        _measures(document["targets"], ours, every_measure),
        Table(
            "conditions, all layers",
            ["condition", *_CONDITIONS.values()],
            rows(overall, ["condition"], _CONDITIONS),
        ),
        Table(
            "layers",
            ["subject", "layer", "neurons", *_LAYERS.values()],
            [
                [name, layer, str(sum(s["neurons"].values())), *_values(s, PRIMARY, _LAYERS)]
                for s in layers
                for name, layer in [(s["subject"], s["layer"])]
            ],
        ),
        Table(
            "numbers of images",
            ["images of a neuron", *(_SCORES | _FEATURES | _SCREENED).values()],
            rows(images, ["condition"], _SCORES | _FEATURES | _SCREENED),
        ),
        Table(
            "scores",
            ["condition", "score", *_SCORES.values()],
            [
                [scope["condition"], name, *values]
                for scope, name in scores
                # Images that are scored anew have our score alone.
                if {*(values := _values(scope, name, _SCORES))} != {"-"}
            ],
        ),
        Table("reliability", ["what", "neurons", "found"], list(_reliability(document, ours))),
    ]
    needed = {"numbers of images": 2, "layers": 2}
    return [table for table in found if len(table.rows) >= needed.get(table.title, 1)]


def _measures(targets: Sequence[Mapping[str, Any]], ours: Mapping[str, Any], every: bool) -> Table:
    """The measures of a condition over everything, with their intervals and targets."""
    by_name = {t["measure"]: t for t in targets if t["condition"] == ours["condition"]}
    rows = []
    for name in MEASURES if every else by_name:
        found, target = _find(ours, PRIMARY, name), by_name.get(name)
        verdict = ""
        if target:
            met = {None: "", True: ", met", False: ", missed"}[target["met"]]
            verdict = f"{'within' if name in AT_MOST else '>='} {target['target']:g}{met}"
        interval = f"{_number(found.get('low'))} to {_number(found.get('high'))}"
        rows.append(
            [
                MEASURES[name],
                _number(found["value"]),
                interval if found.get("low") is not None else "",
                str(found["n"]),
                verdict,
            ]
        )
    titles = [f"{ours['condition']}, all layers", "value", "95 % interval", "n", "target"]
    return Table("measures", titles, rows)


def _reliability(document: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[list[str]]:
    """Whether scores come out the same again, and how photos compare."""
    found = document["reliability"]
    for subject, again in found["embedders"].items():
        what = f"{subject}, same images embedded by {again['second']}"
        agreement = f"Spearman {_number(again['spearman'])}, ICC {_number(again['icc'])}"
        yield [what, str(again["neurons"]), agreement]
    if checked := found["calibration"]:
        value = f"{checked['coverage']:.1%}, {checked['width']:.2f} wide, hold the others' mean"
        yield [f"intervals, {checked['seeds']} seeds", str(checked["neurons"]), value]
    for subject, photos in found["photos"].items():
        value = f"{photos['above_best']:.1%} driven harder than by the best photo"
        what = f"{subject}, single channels against {photos['photos']} photos"
        yield [what, str(len(photos["percentile"])), value]


def _find(scope: Mapping[str, Any], score: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = {**scope["images"], **scope["scores"][score]}[name]
    return found


def _values(scope: Mapping[str, Any], score: str, columns: Mapping[str, str]) -> list[str]:
    return [_number(_find(scope, score, name)["value"]) for name in columns]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of a validation as Markdown, those with a target first."""
    texts = []
    for table in tables(document, every_measure=False):
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        texts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(texts)


def print_tables(document: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a validation, and what they rest on; they read in 80 columns.

    Args:
        document: What ``validation.json`` holds.
        console: Where to.
    """
    for table in tables(document, every_measure=True):
        printed = RichTable(
            box=box.SIMPLE_HEAD,
            header_style="bold",
            show_edge=False,
            pad_edge=False,
            padding=0,
        )
        for name in table.columns:
            # Folded, not cut: a name is there to be copied.
            printed.add_column(name, overflow="fold")
        for row in table.rows:
            style = "bold red" if row[-1].endswith("missed") else ""
            printed.add_row(*map(Text, row), style=style)
        console.print(printed, Text(), sep="\n")
    for scope in document["scopes"]:
        if scope["subject"] is None:
            kinds = ", ".join(
                f"{count:,} {kind}" for kind, count in scope["neurons"].items() if count
            )
            lost = ", ".join(f"{count:,} {status}" for status, count in scope["unscored"].items())
            text = f"{scope['condition']}: {kinds}" + (f"; unscored: {lost}" if lost else "")
            console.print(Text(text, style="dim"))
    for target in document["targets"]:
        if target["met"] is None:
            text = f"{target['condition']}: no {target['measure']}: {target['reason']}"
            console.print(Text(text, style="yellow"))
