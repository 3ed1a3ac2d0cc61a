"""Several runs side by side: a page that compares them, and the whole site of each."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import spearmanr

from polylight.report import charts, words
from polylight.report.content import NeuronSummary, Run
from polylight.report.site import both_widths, environment, write_assets, write_site

MOST_CHANGED = 50
"""How many neurons the table of changes shows."""

_LONGEST_NAME, _LONGEST_VALUE = 60, 24
# A difference that three digits show.
_VISIBLE = 0.0005
# Fewer neurons than these can have any rank correlation by chance.
_FEW = 10
# What a run is known by beside others, the most telling first.
_TELLING = ("subject.name", "embedder.name", "rounds.max_images", "rounds.min_images", "seed")
_NETWORKS, _IDENTITY = ("subject", "embedder"), ("source", "weights_hash")
# Settings that change what a score means, by how their names begin; a seed does not.
_MEANINGS = {
    "method": "the version of the method",
    "subject": "the network or its weights",
    "embedder": "the embedder",
    "reference": "the reference images",
    "rounds": "the number of images",
    "scoring": "the scoring",
    "embedding": "how images are compared",
    "parametrization": "how images are made",
    "augmentation": "how images are made",
    "ascent": "how images are made",
    "precision": "the precision",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the runs that are compared."""

    run: Run
    label: str
    """The run's name, and what sets it apart from the others; unlike that of any other side."""
    folder: str
    """Its site, as seen from the page of the comparison."""

    @property
    def subject(self) -> str:
        """Name of the network whose neurons were scored."""
        return _network(self.run, "subject")

    @property
    def embedder(self) -> str:
        """Name of the network that embedded their images."""
        return _network(self.run, "embedder")

    @property
    def summary(self) -> dict[str, str]:
        """Its numbers, as texts by name."""
        return words.summary(self.run.neurons)


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A neuron that two runs have scored."""

    first: NeuronSummary
    second: NeuronSummary

    @property
    def difference(self) -> float:
        """How far its score is higher in the second run."""
        return float((self.second.score or 0.0) - (self.first.score or 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """A later run against the first."""

    first: Side
    second: Side
    common: int
    """Neurons that both have."""
    scored: Sequence[Change]
    """Those of them that both have scored, the largest change first."""
    rank_correlation: float
    """Spearman's, of the scores in both; NaN where there is none."""

    @property
    def changes(self) -> Sequence[Change]:
        """The neurons that changed most, without those that did not."""
        return [c for c in self.scored[:MOST_CHANGED] if abs(c.difference) >= _VISIBLE]

    @property
    def sentence(self) -> str:
        """What a reader has to know before the chart."""
        if not self.scored:
            return (
                f"They have {words.counted(self.common, 'neuron')} in common, of which none has a "
                "score in both: there is nothing to compare."
            )
        have = "has" if len(self.scored) == 1 else "have"
        said = f"{words.counted(len(self.scored), 'neuron')} {have} a score in both."
        if not math.isnan(self.rank_correlation):
            few = ", of too few neurons to mean much" if len(self.scored) < _FEW else ""
            value = words.number(self.rank_correlation, ".3f")
            said += f" Spearman's rank correlation is {value}{few}."
        only = [
            f"{words.counted(len(side.run.neurons) - self.common, 'neuron')} only in {side.label}"
            for side in (self.first, self.second)
            if len(side.run.neurons) > self.common
        ]
        return f"{said} There are {' and '.join(only)}." if only else said

    @property
    def warning(self) -> str:
        """Why their scores cannot be compared as they are; empty where they can."""
        if self.first.run.manifest is None or self.second.run.manifest is None:
            return (
                "The settings of at least one of these runs are unknown, and so is whether their "
                "scores can be compared."
            )
        names = [name for name, _ in differing([self.first.run, self.second.run])]
        kinds = {name.split(".")[0] for name in names}
        meanings = dict.fromkeys(m for kind, m in _MEANINGS.items() if kind in kinds)
        if not meanings:
            return ""
        return (
            f"These runs differ in {_joined(list(meanings))}, so their scores are not comparable "
            "one to one: a score may differ for that reason alone."
        )

    @property
    def chart(self) -> charts.Spec | None:
        """The scores of both, against each other."""
        if not self.scored:
            return None
        return charts.paired_scores(
            [change.first.score or 0.0 for change in self.scored],
            [change.second.score or 0.0 for change in self.scored],
            [change.first.name for change in self.scored],
            (self.first.label, self.second.label),
        )


def make_sides(runs: Sequence[Run]) -> list[Side]:
    """Give each run a label and a folder of its own.

    Args:
        runs: Any number of runs, also the same one twice.

    Returns:
        As many sides, in the same order.
    """
    if len({run.reported for run in runs}) > 1:
        # What is compared has to be one score.
        runs = [_by_score(run) for run in runs]
    differences = _telling(differing(runs))
    sides: list[Side] = []
    for i, run in enumerate(runs):
        apart = ", ".join(f"{_short(name)} {_cut(values[i])}" for name, values in differences)
        label = f"{run.name} ({apart})" if apart else run.name
        if label in {side.label for side in sides}:
            label = f"{label} ({i + 1})"
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run.name).strip("-")[:_LONGEST_NAME]
        sides.append(Side(run=run, label=label, folder=f"runs/{i + 1}-{readable}".rstrip("-")))
    return sides


def compare(first: Side, second: Side) -> Comparison:
    """Compare the scores of the neurons that two runs have, by name.

    Args:
        first: A run.
        second: Another one.

    Returns:
        What both have in common.
    """
    others = {neuron.name: neuron for neuron in second.run.neurons}
    both = [
        Change(first=neuron, second=others[neuron.name])
        for neuron in first.run.neurons
        if neuron.name in others
    ]
    scored = [
        change
        for change in both
        if change.first.score is not None and change.second.score is not None
    ]
    scored.sort(key=lambda change: (-abs(change.difference), change.first.name))
    return Comparison(
        first=first,
        second=second,
        common=len(both),
        scored=scored,
        rank_correlation=_rank_correlation(scored),
    )


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """List the settings that are not the same in all runs.

    Args:
        runs: At least one run.

    Returns:
        Dotted name and the value in each run, an en dash where it has none.
    """
    all_settings = [words.listed(run.manifest) if run.manifest else {} for run in runs]
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    values = {name: [settings.get(name, words.NONE) for settings in all_settings] for name in names}
    return [(name, found) for name, found in values.items() if len(set(found)) > 1]


def write_comparison(sides: Sequence[Side], folder: Path, *, has_pdf: bool = False) -> list[Side]:
    """Write a page that compares runs, and the site of each below it.

    Args:
        sides: At least two runs, of :func:`make_sides`.
        folder: Where to write; it exists and is empty.
        has_pdf: Whether each site has a ``report.pdf``.

    Returns:
        The sides, with the images that are damaged among what is unreadable of their runs.

    Raises:
        InputError: If a part of a run cannot be read any more.
        OSError: If something cannot be written.
    """
    written = []
    for side in sides:
        site = folder / side.folder
        site.mkdir(parents=True)
        run = write_site(side.run, site, has_pdf=has_pdf, home="../../index.html")
        written.append(replace(side, run=run))
    write_assets(folder)
    page = environment().get_template("compare.html")
    text = page.render(
        root="",
        site="comparison",
        home=None,
        has_pdf=False,
        sides=written,
        distributions=both_widths(
            charts.paired_distributions,
            [side.run for side in written],
            [side.label for side in written],
        ),
        pairs=[compare(written[0], side) for side in written[1:]],
        differences=differing([side.run for side in written]),
        incomplete=list(_incomplete(written)),
    )
    (folder / "index.html").write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return written


def _rank_correlation(scored: Sequence[Change]) -> float:
    """Spearman's rank correlation of the scores in both runs; NaN where there is none."""
    a, b = ([getattr(change, side).score for change in scored] for side in ("first", "second"))
    # Of equal values there is none, of which SciPy would warn.
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(spearmanr(a, b).statistic)


def _telling(differences: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Choose the two differences by which a reader tells runs apart."""
    names = [name for name, _ in differences]
    # What follows from another difference says nothing more.
    follows = {"rounds.min_images": "rounds.max_images", "reference": "embedder.name"}
    follows |= {f"{of}.{what}": f"{of}.name" for of in _NETWORKS for what in _IDENTITY}
    left = [each for each in differences if follows.get(each[0]) not in names]
    rank = {name: place for place, name in enumerate(_TELLING)}
    return sorted(left, key=lambda each: rank.get(each[0], len(rank)))[:2]


def _short(name: str) -> str:
    """Shorten the dotted name of a setting to what tells it from others."""
    head, _, last = name.rpartition(".")
    return head if last == "name" else name if last in _IDENTITY else last


def _cut(value: str) -> str:
    """Cut a long value off."""
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"


def _joined(texts: Sequence[str]) -> str:
    """List texts in a sentence."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _incomplete(sides: Sequence[Side]) -> Iterator[tuple[str, str]]:
    """Say of each run that is not whole why it is not."""
    for side in sides:
        if side.run.state != "finished" or side.run.missing_shards:
            yield side.label, words.state(side.run)
        for part in side.run.unreadable:
            yield side.label, f"{part.path}: {part.reason}"


def _by_score(run: Run) -> Run:
    """Show a run by the score that every run has."""
    neurons = [replace(neuron, reported="score") for neuron in run.neurons]
    return replace(run, neurons=neurons, reported="score")


def _network(run: Run, role: str) -> str:
    """Name a network of a run."""
    return str(getattr(run.manifest, role).get("name", words.NONE)) if run.manifest else words.NONE
