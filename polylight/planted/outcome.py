"""What came of a planted neuron: the record that the proof of the score is computed from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polylight.errors import InputError

PRIMARY = "polylight"
"""Name of the score that targets are set for and that is drawn."""
COMPOSITES = ("max", "logits")
CONTROLS = ("min", "copies", "twins")
KINDS = ("single", *COMPOSITES, *CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One planted neuron as one recipe scored it with one seed; N is the number of its images."""

    subject: str
    """The network."""
    recipe: str
    """How the images were made, such as ``polylight`` or ``baseline``."""
    layer: str
    neuron: str
    """The neuron as text, unique in a run."""
    kind: str
    """One of ``KINDS`` (:class:`polylight.planted.planted.Planted`)."""
    m: int
    """Features that it is known to have, >= 1."""
    components: tuple[str, ...]
    """Its components as text; each is scored as a single of the same subject, recipe and seed."""
    screened: bool
    """Whether each component is in the more monosemantic half of its layer, or a class."""
    status: str
    """``ok``, ``dead`` or ``failed``."""
    scores: Mapping[str, float]
    """By name of the score; without those that do not exist."""
    labels: list[int]
    """[N]: cluster of each image, -1 where invalid."""
    winner: list[int]
    """[N]: index of the component that each image drives most."""
    activation: list[float]
    """[N]: objective of each image."""
    k: int
    """Number of clusters; 0 without a score."""
    score_low: float | None
    """Lower end of the 95 % interval of the primary score."""
    score_high: float | None
    """Upper end of it."""
    seed: int
    similarity: float | None = None
    """Correlation of two components over reference images, in [-1, 1]; None if it is not known."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"'{self.neuron}' is of kind '{self.kind}', expected one of {', '.join(KINDS)}."
            )
        if self.m < 1 or (self.kind not in COMPOSITES and self.m != 1):
            raise InputError(
                f"'{self.neuron}' of kind '{self.kind}' cannot have {self.m} features: m is 1, "
                f"and of {' and '.join(COMPOSITES)} the number of components."
            )
        lengths = {len(self.labels), len(self.winner), len(self.activation)}
        if len(lengths) > 1:
            raise InputError(
                f"'{self.neuron}' has {len(self.labels)} labels, {len(self.winner)} winners and "
                f"{len(self.activation)} activations; give one of each for every image."
            )

    @property
    def valid(self) -> list[bool]:
        """[N]: which images count."""
        return [label >= 0 for label in self.labels]

    def score(self, name: str) -> float | None:
        """The score of a name; None where the neuron has none, or one that is not finite."""
        value = self.scores.get(name) if self.status == "ok" else None
        return value if value is not None and math.isfinite(value) else None


def first_seeds(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Keep the outcome of the lowest seed of every neuron.

    Outcomes of one neuron are no independent observations, so statistics take one of each.

    Args:
        outcomes: Outcomes of any subjects, recipes and seeds.

    Returns:
        One a subject, recipe and neuron, in the order given.

    Raises:
        InputError: If a neuron comes twice with the same seed.
    """
    lowest: dict[tuple[str, str, str], Outcome] = {}
    seen: set[tuple[str, str, str, int]] = set()
    for o in outcomes:
        key = (o.subject, o.recipe, o.neuron)
        if (*key, o.seed) in seen:
            raise InputError(
                f"'{o.neuron}' of {o.subject} comes twice for recipe '{o.recipe}' and seed "
                f"{o.seed}; give each outcome once."
            )
        seen.add((*key, o.seed))
        if key not in lowest or o.seed < lowest[key].seed:
            lowest[key] = o
    kept = {id(o) for o in lowest.values()}
    return [o for o in outcomes if id(o) in kept]
