"""What an image is told before it climbs."""

from dataclasses import dataclass

from polylight.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How an image climbs.

    Attributes:
        max_steps: Steps of an image at the most, > 0.
        learning_rate: Adam's, in units of the latent.
        explore: Part of the steps in which an image is repelled by its neuron's finished ones,
            in [0, 1).
        repulsion: Weight of the repulsion, >= 0; it falls linearly to zero over the explored
            steps. An image that moves as all the finished ones did pays this many times what it
            gains.
        tolerance: An image has converged when its smoothed objective has risen by less than
            this part of its gain for ``patience`` steps, > 0.
        patience: Steps, >= 0; 0 never stops an image early.
        stride: Convergence is looked at every so many steps, > 0; slots that become free then
            become free together, when they can be refilled.
    """

    max_steps: int = 128
    learning_rate: float = 0.05
    explore: float = 0.3
    repulsion: float = 4.0
    tolerance: float = 0.01
    patience: int = 16
    stride: int = 4

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise InputError(f"max_steps has to be at least 1, not {self.max_steps}.")
        if not 0 <= self.explore < 1:
            raise InputError(f"explore is a part of the steps in [0, 1), not {self.explore}.")
        if self.repulsion < 0 or self.learning_rate <= 0 or self.tolerance <= 0:
            raise InputError(
                "repulsion has to be >= 0, learning_rate and tolerance > 0, not "
                f"{self.repulsion}, {self.learning_rate}, {self.tolerance}."
            )
        if self.patience < 0 or self.stride < 1:
            raise InputError(
                "patience has to be at least 0, which never stops an image early, and stride at "
                f"least 1, not {self.patience} and {self.stride}."
            )

    @property
    def explore_steps(self) -> int:
        """Steps in which an image is repelled by its neuron's finished images."""
        return int(self.explore * self.max_steps) if self.repulsion > 0 else 0


@dataclass(frozen=True)
class Slot:
    """What enters a slot: one image of one neuron.

    Attributes:
        key: Random stream of the image.
        active_index: Number of its neuron among the active ones.
        max_steps: Steps at the most.
        explore_steps: Steps in which it is repelled.
    """

    key: int
    active_index: int
    max_steps: int
    explore_steps: int
