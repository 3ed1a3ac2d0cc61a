"""Scores and fates of a run's neurons, over all its sessions."""

from collections import Counter, defaultdict
from collections.abc import Mapping


class Tally:
    """Counts every neuron once.

    Attributes:
        scores: Of the scored neurons of each layer, in the order in which they came.
        grown: Layers whose scores have become more since this was last cleared.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.grown: set[str] = set()
        self._statuses: Counter[str] = Counter()
        self._names: set[str] = set()

    def __contains__(self, neuron: str) -> bool:
        return neuron in self._names

    def note(self, neuron: str, layer: str, status: str, score: float | None) -> None:
        """Count a neuron, unless it is counted already."""
        if neuron in self._names:
            return
        self._names.add(neuron)
        self._statuses[status] += 1
        if score is not None:
            self.scores[layer].append(score)
            self.grown.add(layer)

    @property
    def neurons(self) -> Mapping[str, int]:
        """How many are ``finished``, whatever came of them, and how many of those otherwise."""
        return {
            "finished": len(self._names),
            "dead": self._statuses["dead"],
            "failed": self._statuses["failed"],
        }
