"""The proof of the score in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polylight.planted.estimate import Estimate
from polylight.planted.outcome import PRIMARY
from polylight.planted.summary import AT_MOST, Scope, Summary, Verdict, measure, overall

# What fits beside the names and the target in 80 columns.
_RECIPES_BESIDE = 2

_LABELS = {
    "auroc": "AUROC, 1 against more",
    "auroc_within": "  within layers",
    "auroc_singles": "  without controls",
    "auroc_screened": "  screened",
    "spearman": "Spearman with number",
    "spearman_most": "  ties allow at most",
    "spearman_within": "  within layers",
    "spearman_singles": "  without controls",
    "spearman_screened": "  screened",
    "spearman_screened_most": "  ties allow at most",
    "above_mean": "above mean component",
    "above_highest": "above best component",
    "min_difference": "min less singles",
    "copies_difference": "copies less singles",
    "twins_difference": "twins less singles",
    "controls_difference": "  farthest of these",
    "ordering": "unlike above alike",
    "seeds_spearman": "two seeds, Spearman",
    "seeds_icc": "two seeds, ICC",
    "facet_recall": "facets found",
    "facets_made": "  in any image",
    "valid": "images that count",
    "adjusted_rand": "clusters, adj. Rand",
    "k_exact": "K exact",
    "k_error": "K less number",
}
_BY_SCORE = ("auroc", "spearman", "above_mean", "above_highest")
_BY_LAYER = ("auroc", "spearman", "facet_recall", "above_mean", "above_highest")
_BY_COUNT = ("auroc", "spearman", "spearman_screened", *_BY_LAYER[2:])
_SHORT = {
    "auroc": "AUROC",
    "spearman": "Spearm.",
    "spearman_screened": "screened",
    "facet_recall": "facets",
    "above_mean": "> mean",
    "above_highest": "> max",
}


def print_summary(summary: Summary, console: Console) -> None:
    """Print what matters of a summary; it reads in 80 columns.

    Args:
        summary: From :func:`polylight.planted.summary.summarise`.
        console: Where to.
    """
    everything = overall(summary)
    for start in range(0, len(everything), _RECIPES_BESIDE):
        beside = everything[start : start + _RECIPES_BESIDE]
        console.print(_overall(beside, summary.verdicts), Text(), sep="\n")
    if len({name for scope in everything for name in scope.scores}) > 1:
        console.print(_by_score(everything), Text(), sep="\n")
    layers = [scope for scope in summary.scopes if scope.layer is not None]
    if len(layers) > len(everything):
        console.print(_by_layer(layers), Text(), sep="\n")
    for line in _remarks(everything, summary.verdicts):
        console.print(line)


def print_curve(scopes: Sequence[Scope], console: Console) -> None:
    """Print how well the score does with fewer images; it reads in 80 columns.

    Args:
        scopes: A recipe for each number of images, over everything, and the one with all of them.
        console: Where to.
    """
    table = _table(f"Score '{PRIMARY}' by number of images", ["images"])
    for name in _BY_COUNT:
        table.add_column(_SHORT[name], justify="right", no_wrap=True)
    for scope in scopes:
        found = [measure(scope, PRIMARY, name) for name in _BY_COUNT]
        table.add_row(Text(scope.recipe), *map(_number, found))
    console.print(table, Text(), sep="\n")


def print_reliability(reliability: Mapping[str, Any], console: Console) -> None:
    """Print whether scores come out the same again, and how photos compare.

    Args:
        reliability: ``seeds`` and ``calibration`` (:mod:`polylight.planted.reliability`), and by
            subject ``embedders`` and ``strength``, where they are there.
        console: Where to.
    """
    table = _table("The same again", ["what", "subject", "neurons", "found"])
    seeds = reliability["seeds"]
    if seeds["neurons"]:
        found = f"Spearman {_three(seeds['spearman'])}, ICC {_three(seeds['icc'])}"
        table.add_row("another seed", "all", str(seeds["neurons"]), found)
    for subject, again in reliability.get("embedders", {}).items():
        found = f"Spearman {_three(again['spearman'])}, ICC {_three(again['icc'])}"
        what = f"embedded by {again['second']}"
        table.add_row(Text(what), Text(subject), str(again["neurons"]), found)
    if checked := reliability.get("calibration"):
        found = (
            f"{checked['coverage']:.1%} of the intervals, {checked['width']:.2f} wide, hold the "
            "mean of the other seeds"
        )
        table.add_row(f"{checked['seeds']} seeds", "all", str(checked["neurons"]), found)
    for subject, strength in reliability.get("strength", {}).items():
        found = f"{strength['above_best']:.1%} are driven harder than by the best photo"
        what = f"{strength['photos']} photos"
        table.add_row(what, Text(subject), str(len(strength["percentile"])), found)
    if table.row_count:
        console.print(table, Text(), sep="\n")


def _three(value: float) -> str:
    return f"{value:.3f}" if value == value else "-"


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for name in names:
        # Folded, not cut: a name is there to be copied.
        table.add_column(name, overflow="fold")
    return table


def _overall(scopes: Sequence[Scope], verdicts: Sequence[Verdict]) -> Table:
    """Every measure of the primary score, a column for each recipe."""
    table = _table(f"Score '{PRIMARY}': value [95 % interval] number of neurons", ["measure"])
    for scope in scopes:
        table.add_column(Text(scope.recipe), overflow="fold")
    targets = {v.name: v.target for v in verdicts}
    if targets:
        table.add_column("target", no_wrap=True)
    for name, label in _LABELS.items():
        cells = [_cell(measure(s, PRIMARY, name), _met(verdicts, s.recipe, name)) for s in scopes]
        if targets:
            sign = "<=" if name in AT_MOST else ">="
            cells.append(Text(f"{sign} {targets[name]:g}" if name in targets else ""))
        table.add_row(label, *cells)
    return table


def _by_score(scopes: Sequence[Scope]) -> Table:
    """The main measures of every score."""
    table = _table("Every score", ["recipe", "score"])
    for name in _BY_SCORE:
        table.add_column(_SHORT[name], justify="right", no_wrap=True)
    for scope in scopes:
        for score in scope.scores:
            found = [measure(scope, score, name) for name in _BY_SCORE]
            # Pooled images only have the primary score.
            if any(estimate.value is not None for estimate in found):
                table.add_row(Text(scope.recipe), Text(score), *map(_number, found))
    return table


def _by_layer(scopes: Sequence[Scope]) -> Table:
    """The main measures of the primary score in every layer."""
    table = _table(f"Score '{PRIMARY}' by layer", ["recipe", "subject", "layer"])
    for name in _BY_LAYER:
        table.add_column(_SHORT[name], justify="right", no_wrap=True)
    for scope in scopes:
        found = [measure(scope, PRIMARY, name) for name in _BY_LAYER]
        names = (scope.recipe, scope.subject or "", scope.layer or "")
        table.add_row(*map(Text, names), *map(_number, found))
    return table


def _remarks(scopes: Sequence[Scope], verdicts: Sequence[Verdict]) -> Iterator[Text]:
    """Say what the tables rest on, and why a number with a target is not there."""
    for scope in scopes:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in scope.neurons.items() if count)
        lost = ", ".join(f"{count:,} {status}" for status, count in scope.unscored.items())
        line = f"{scope.recipe}: {kinds}" + (f"; unscored: {lost}" if lost else "")
        yield Text(line, style="dim")
    for verdict in verdicts:
        if verdict.met is None:
            yield Text(f"{verdict.recipe}: no {verdict.name}: {verdict.reason}", style="yellow")


def _met(verdicts: Sequence[Verdict], recipe: str, name: str) -> bool | None:
    """Whether a recipe reaches its target; None without one."""
    return next((v.met for v in verdicts if v.recipe == recipe and v.name == name), None)


def _cell(found: Estimate, met: bool | None) -> Text:
    """Lay out an estimate with its interval and count, and whether that will do."""
    if found.value is None:
        return Text("-", style="dim")
    style = "" if met is None else "bold green" if met else "bold red"
    text = Text(f"{found.value:>6.3f}", style=style)
    ends = ""
    if found.low is not None and found.high is not None:
        ends = f"[{_end(found.low)} {_end(found.high)}]"
    # Not by colour alone.
    mark = "  " if met is None else " ✓" if met else " ✗"
    return text.append(f" {ends:<11} {found.n:>3}", style="dim").append(mark)


def _number(found: Estimate) -> Text:
    """Format a value, or a dash where there is none."""
    if found.value is None:
        return Text("-", style="dim")
    return Text(f"{found.value:.3f}")


def _end(value: float) -> str:
    """Format the end of an interval without the 0 before the point."""
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
