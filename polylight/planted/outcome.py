"""What came of a planted neuron: the record that a validation is computed from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

PRIMARY = "polylight"
"""Name of the score that targets are set for, and of the condition that it is validated under."""
POOLED = "pooled"
"""Condition of the control in which images of several neurons are put together."""
VIEWS = ("embedder", "layer_input")
"""Conditions in which the same images are compared by only one of the two views."""
MOST_CONDITIONS = 7
"""How many conditions a figure can tell apart."""
COMPOSITES = ("max", "logits")
CONTROLS = ("min", "copies", "near_duplicates")
KINDS = ("single", *COMPOSITES, *CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One planted neuron as it was scored under one condition with one seed.

    N is the number of its images; what an image has is named as in a run's rows.
    """

    subject: str
    """The network."""
    condition: str
    """How the images were made and compared, such as ``polylight`` or ``independent``."""
    layer: str
    neuron: str
    """The neuron as text, unique in a run."""
    kind: str
    """One of ``KINDS`` (:class:`polylight.planted.neurons.PlantedNeuron`)."""
    m: int
    """Features that it is known to have, >= 1."""
    components: tuple[str, ...]
    """Its components as text; each is scored as a single of the same condition and seed."""
    screened: bool
    """Whether each component is in the more monosemantic half of its layer, or a class."""
    status: str
    """That of its row, ``ok`` where it has a score."""
    scores: Mapping[str, float]
    """By name of the score; without those that do not exist."""
    label: list[int]
    """[N]: cluster of each image, -1 where it is not valid."""
    component: list[int]
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
    """Correlation of two components over textures, in [-1, 1]; None if it is not known."""

    @property
    def valid(self) -> list[bool]:
        """[N]: which images count."""
        return [label >= 0 for label in self.label]

    def score(self, name: str) -> float | None:
        """The score of a name; None where the neuron has none, or one that is not finite."""
        value = self.scores.get(name) if self.status == "ok" else None
        return value if value is not None and math.isfinite(value) else None
