"""The tables of a validation, from ``validation.json``: for the terminal, and as Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    "above_highest": "> max",
}
_CONDITIONS = {
    "auroc": "AUROC",
    "auroc_screened": "AUROC, screened",
    "spearman": "Spearman",
    "spearman_screened": "Spearman, screened",
    "above_mean": "> mean",
    "above_highest": "> max",
    "feature_recall": "features",
    "controls_difference": "controls",
}
_LAYERS = {
    "auroc": "AUROC",
    "spearman": "Spearman",
    "spearman_bound": "at most",
    "above_mean": "> mean",
    "above_highest": "> max",
    "feature_recall": "features",
}
_WITH_INTERVAL = ("auroc", "spearman")


@dataclass(frozen=True)
class Table:
    """Titles, and rows of texts."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(document: Mapping[str, Any]) -> str:
    """Lay a validation out as Markdown: measures that have a target, and intervals of layers.

    Args:
        document: What ``validation.json`` holds.

    Returns:
        Several tables.
    """
    names = list(dict.fromkeys(target["measure"] for target in document["targets"]))
    texts = []
    for table in _tables(document, names, intervals=True):
        lines = [table.titles, ["---"] * len(table.titles), *table.rows]
        texts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(texts)


def print_tables(document: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a validation, and what they rest on; they read in 80 columns.

    Args:
        document: What ``validation.json`` holds.
        console: Where to.
    """
    for table in _tables(document, list(MEASURES), intervals=False):
        printed = RichTable(
            box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=0
        )
        for title in table.titles:
            # Folded, not cut: a name is there to be copied.
            printed.add_column(Text(title), overflow="fold")
        for row in table.rows:
            printed.add_row(*map(Text, row), style="bold red" if row[-1].endswith("missed") else "")
        console.print(printed, Text(), sep="\n")
    for scope in _overall(document):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in scope["neurons"].items() if count)
        lost = ", ".join(f"{count:,} {status}" for status, count in scope["unscored"].items())
        text = f"{scope['condition']}: {kinds}" + (f"; unscored: {lost}" if lost else "")
        console.print(Text(text, style="dim"))
    for target in document["targets"]:
        if target["met"] is None:
            text = f"{target['condition']}: no {target['measure']}: {target['reason']}"
            console.print(Text(text, style="yellow"))


def _overall(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List what was found over everything, of each condition; the first is validated."""
    return [scope for scope in document["scopes"] if scope["subject"] is None]


def _tables(
    document: Mapping[str, Any], measures: Sequence[str], *, intervals: bool
) -> Iterator[Table]:
    """Measures of the condition that is validated, then all that they can be compared with."""
    overall = _overall(document)
    ours = overall[0]
    yield _measures(document, ours, measures)
    yield Table(
        ["condition", *_CONDITIONS.values()],
        [[scope["condition"], *_values(scope, PRIMARY, _CONDITIONS)] for scope in overall],
    )
    layers = [s for s in document["scopes"] if s["layer"] and s["condition"] == ours["condition"]]
    if len(layers) > 1:
        rows = []
        for scope in layers:
            cells = _values(scope, PRIMARY, _LAYERS, _WITH_INTERVAL if intervals else ())
            neurons = str(sum(scope["neurons"].values()))
            rows.append([scope["subject"], scope["layer"], neurons, *cells])
        yield Table(["subject", "layer", "n", *_LAYERS.values()], rows)
    if fewer := document["by_image_count"]:
        scopes = [*fewer, {**ours, "condition": "all"}]
        yield Table(
            ["images", *_CONDITIONS.values()],
            [[scope["condition"], *_values(scope, PRIMARY, _CONDITIONS)] for scope in scopes],
        )
    rows = [
        [scope["condition"], name, *_values(scope, name, _SCORES)]
        for scope in overall
        for name in scope["scores"]
    ]
    # Images that are scored anew have our score alone.
    rows = [row for row in rows if {*row[2:]} != {"-"}]
    yield Table(["condition", "score", *_SCORES.values()], rows)
    if rows := list(_reliability(document, ours)):
        yield Table(["the same again", "neurons", "found"], rows)


def _measures(
    document: Mapping[str, Any], scope: Mapping[str, Any], measures: Sequence[str]
) -> Table:
    """Measures over everything, with their intervals and targets."""
    targets = {t["measure"]: t for t in document["targets"] if t["condition"] == scope["condition"]}
    rows = []
    for name in measures:
        found, aim = _find(scope, PRIMARY, name), ""
        if target := targets.get(name):
            met = {None: "", True: ", met", False: ", missed"}[target["met"]]
            aim = f"{'within' if name in AT_MOST else '>='} {target['target']:g}{met}"
        interval = "" if found["low"] is None else _ends(found)
        rows.append([MEASURES[name], _number(found["value"]), interval, str(found["n"]), aim])
    return Table([f"{scope['condition']}, all layers", "value", "95 %", "n", "target"], rows)


def _reliability(document: Mapping[str, Any], scope: Mapping[str, Any]) -> Iterator[list[str]]:
    """Whether scores come out the same again, and how photos compare."""
    seeds = [_find(scope, PRIMARY, f"seeds_{name}") for name in ("spearman", "icc")]
    if seeds[0]["value"] is not None:
        agreement = "Spearman {}, ICC {}".format(*(_number(found["value"]) for found in seeds))
        yield ["single channels, another seed", str(seeds[0]["n"]), agreement]
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


def _values(
    scope: Mapping[str, Any], score: str, names: Iterable[str], with_interval: Sequence[str] = ()
) -> list[str]:
    cells = []
    for name in names:
        found = _find(scope, score, name)
        ends = f" [{_ends(found)}]" if name in with_interval and found["low"] is not None else ""
        cells.append(_number(found["value"]) + ends)
    return cells


def _ends(found: Mapping[str, Any]) -> str:
    return f"{found['low']:.3f} to {found['high']:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
