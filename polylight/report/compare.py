"""Several runs side by side: a page that compares them, and the whole site of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polylight.planted.statistics import spearman
from polylight.report import charts, words
from polylight.report.content import NeuronSummary, Run
from polylight.report.site import environment, write_assets, write_site

MOST_CHANGED = 50
"""How many neurons the table of changes shows."""

_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the runs that are compared."""

    run: Run
    label: str
    """The run's name, unlike that of any other side."""
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
        return float(self.second.values["score"] - self.first.values["score"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
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
        return [change for change in self.scored[:MOST_CHANGED] if change.difference]

    @property
    def sentence(self) -> str:
        """What a reader has to know before the chart."""
        if not self.scored:
            return (
                f"They have {words.counted(self.common, 'neuron')} in common, of which none has a "
                "score in both: there is nothing to compare."
            )
        said = f"{words.counted(len(self.scored), 'neuron')} have a score in both."
        if self.rank_correlation == self.rank_correlation:
            said += f" Spearman's rank correlation is {words.number(self.rank_correlation, '.3f')}."
        only = [
            f"{words.counted(len(side.run.neurons) - self.common, 'neuron')} only in {side.label}"
            for side in (self.first, self.second)
            if len(side.run.neurons) > self.common
        ]
        return f"{said} There are {' and '.join(only)}." if only else said

    @property
    def chart(self) -> charts.Spec | None:
        """The scores of both, against each other."""
        if not self.scored:
            return None
        return charts.paired_scores(
            [change.first.values["score"] for change in self.scored],
            [change.second.values["score"] for change in self.scored],
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
    sides: list[Side] = []
    for i, run in enumerate(runs, start=1):
        taken = {side.label for side in sides}
        label = run.name if run.name not in taken else f"{run.name} ({i})"
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run.name).strip("-")[:_LONGEST_NAME]
        sides.append(Side(run=run, label=label, folder=f"runs/{i}-{readable}".rstrip("-")))
    return sides


def compare(first: Side, second: Side) -> Pair:
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
        if change.first.values["score"] is not None and change.second.values["score"] is not None
    ]
    scored.sort(key=lambda change: (-abs(change.difference), change.first.name))
    a, b = ([getattr(change, side).values["score"] for change in scored] for side in _SIDES)
    return Pair(
        first=first,
        second=second,
        common=len(both),
        scored=scored,
        rank_correlation=float(spearman(a, b)) if scored else float("nan"),
    )


def differing(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """List the settings that are not the same in all runs.

    Args:
        sides: At least one run.

    Returns:
        Dotted name and the value in each run, an en dash where it has none.
    """
    all_settings = [words.listed(s.run.manifest) if s.run.manifest else {} for s in sides]
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
        distributions=charts.paired_distributions(
            [side.run for side in written], [side.label for side in written]
        ),
        pairs=[compare(written[0], side) for side in written[1:]],
        differences=differing(written),
        incomplete=list(_incomplete(written)),
    )
    (folder / "index.html").write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return written


_SIDES = ("first", "second")


def _incomplete(sides: Sequence[Side]) -> Any:
    """Say of each run that is not whole why it is not."""
    for side in sides:
        if side.run.state != "finished":
            yield side.label, words.state(side.run)
        for part in side.run.unreadable:
            yield side.label, f"{part.path}: {part.reason}"


def _network(run: Run, role: str) -> str:
    """Name a network of a run."""
    return str(getattr(run.manifest, role).get("name", words.NONE)) if run.manifest else words.NONE
