"""What the metrics of one neuron share: its images, and how they are clustered."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from polylight.clustering import Backend
from polylight.errors import InputError
from polylight.scoring.points import Numbers, as_tensor, check_finite
from polylight.scoring.score import Score, polysemanticity_score


class NeuronMetric(Metric):
    """Holds the images of one neuron, for a score that is worked out from all of them.

    Its states are the same whatever the score, so a :class:`torchmetrics.MetricCollection` keeps
    them once.

    Args:
        kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    embeddings: list[Tensor]
    activations: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("activations", [], dist_reduce_fx="cat")

    def update(self, embeddings: Numbers, activations: Numbers | None = None) -> None:
        """Add images of the neuron.

        Args:
            embeddings: float [N, D], of torch or NumPy; gradients are left behind.
            activations: float [N], how strongly each image drives the neuron; with every update
                or with none.

        Raises:
            InputError: A shape does not fit, a value is NaN or infinite, or only some updates have
                activations.
        """
        embeddings = as_tensor(embeddings, "embeddings")
        activations = None if activations is None else as_tensor(activations, "activations")
        if embeddings.dim() != 2:
            raise InputError(
                f"embeddings must be [images, dimensions], got {list(embeddings.shape)}"
            )
        if activations is not None and activations.shape != embeddings.shape[:1]:
            raise InputError(
                f"activations must be [{len(embeddings)}], one for each image, got "
                f"{list(activations.shape)}"
            )
        if self.embeddings and (activations is None) == bool(self.activations):
            raise InputError(
                "activations must come with every update or with none; call reset() to start anew"
            )
        everything = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
        check_finite(embeddings, everything, "embeddings")
        self.embeddings.append(embeddings)
        if activations is not None:
            check_finite(activations, everything, "activations")
            self.activations.append(activations)

    def images(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Give all the images so far as a batch of one neuron.

        Returns:
            Embeddings [1, N, D]; activations [1, N], or None where the updates had none; valid
            bool [1, N], all True.
        """
        points = dim_zero_cat(self.embeddings)[None]
        # Once synchronised over processes a state is a tensor, which has no truth value.
        strength = dim_zero_cat(self.activations)[None] if len(self.activations) else None
        return points, strength, torch.ones_like(points[..., 0], dtype=torch.bool)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several, as all metrics of torchmetrics do.

        Args:
            val: What ``compute`` or ``forward`` returned, once or in a list; computed unless given.
            ax: Axes of matplotlib to plot into; made unless given.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    def keys(self, key: int) -> Tensor:
        """Give a random stream as int64 [1], where the images are."""
        return torch.tensor([key], device=self.embeddings[0].device)


class ClusteredMetric(NeuronMetric):
    """Adds how the images are clustered.

    Args:
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        key: Random stream of the neuron.
        backend: ``gram``, ``faiss`` or ``cuml``.
        baseline: Activation of random images; what is not above it counts for nothing.
        kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    def __init__(
        self,
        k_max: int = 8,
        restarts: int = 32,
        key: int = 0,
        backend: Backend = "gram",
        baseline: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k_max, self.restarts, self.key = k_max, restarts, key
        self.backend: Backend = backend
        self.baseline = baseline

    def clusters(self) -> Score:
        """Cluster all the images so far and score the clusters, as a batch of one neuron.

        Raises:
            InputError: If there are activations and none of them is above the baseline.
        """
        points, strength, valid = self.images()
        if strength is not None and not bool((strength > self.baseline).any()):
            raise InputError(
                f"none of the {strength.numel()} activations is above the baseline "
                f"{self.baseline:g}; pass baseline=, the mean activation of random images, or "
                "leave the activations away"
            )
        return polysemanticity_score(
            points,
            strength,
            valid=valid,
            keys=self.keys(self.key),
            baseline=torch.tensor([self.baseline], dtype=torch.float64),
            k_max=self.k_max,
            restarts=self.restarts,
            backend=self.backend,
        )
