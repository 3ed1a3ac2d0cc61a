"""The scores as torchmetrics metrics of one neuron, whose images arrive in batches."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from polylight.clustering import Backend, cluster
from polylight.errors import InputError
from polylight.scoring.functional import Score, paper_score, polysemanticity_score


class PolysemanticityScore(Metric):
    r"""How many unrelated features drive one neuron, from 0 (one) to 1 (many).

    .. math:: S = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    over the clusters of its images (:func:`polylight.scoring.polysemanticity_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``, how strongly each image
      drives the neuron; either every update has them or none.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 1].

    Args:
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        key: Random stream of the neuron.
        backend: ``gram``, ``faiss`` or ``cuml``.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import PolysemanticityScore
        >>> metric = PolysemanticityScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    embeddings: list[Tensor]
    activations: list[Tensor]

    def __init__(
        self,
        k_max: int = 8,
        restarts: int = 32,
        key: int = 0,
        backend: Backend = "gram",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k_max, self.restarts, self.key = k_max, restarts, key
        self.backend: Backend = backend
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("activations", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, activations: Tensor | None = None) -> None:
        """Add images of the neuron."""
        _append(self.embeddings, self.activations, embeddings, activations)

    def compute(self) -> Tensor:
        """Score all the images so far."""
        return _score(self).score[0]


class EffectiveFeatures(Metric):
    r"""Number of equal, unrelated features that would give one neuron its score.

    .. math:: K_{eff} = \frac{1}{1 - S}

    with S of :class:`PolysemanticityScore`, whose inputs and arguments these are.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``; either every update has
      them or none.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``k_eff`` (:class:`~torch.Tensor`): float64 scalar in [1, inf].

    Args:
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        key: Random stream of the neuron.
        backend: ``gram``, ``faiss`` or ``cuml``.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import EffectiveFeatures
        >>> metric = EffectiveFeatures()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 1.0

    embeddings: list[Tensor]
    activations: list[Tensor]

    def __init__(
        self,
        k_max: int = 8,
        restarts: int = 32,
        key: int = 0,
        backend: Backend = "gram",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k_max, self.restarts, self.key = k_max, restarts, key
        self.backend: Backend = backend
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("activations", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, activations: Tensor | None = None) -> None:
        """Add images of the neuron."""
        _append(self.embeddings, self.activations, embeddings, activations)

    def compute(self) -> Tensor:
        """Count the features in all the images so far."""
        return _score(self).k_eff[0]


class PaperScore(Metric):
    r"""Score of the original method for one neuron, kept for comparison.

    .. math:: S = C + D - C D

    on k-means clusters of raw embeddings, K by the Bayesian information criterion
    (:func:`polylight.scoring.paper_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, raw.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 1].

    Args:
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        key: Random stream of the neuron.
        backend: ``gram``, ``faiss`` or ``cuml``.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit.

    Example:
        >>> import torch
        >>> from polylight.scoring import PaperScore
        >>> metric = PaperScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5333, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    embeddings: list[Tensor]

    def __init__(
        self,
        k_max: int = 8,
        restarts: int = 32,
        key: int = 0,
        backend: Backend = "gram",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k_max, self.restarts, self.key = k_max, restarts, key
        self.backend: Backend = backend
        self.add_state("embeddings", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor) -> None:
        """Add images of the neuron."""
        _append(self.embeddings, [], embeddings, None)

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points = dim_zero_cat(self.embeddings)[None]
        votes = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
        found = cluster(
            points,
            votes=votes,
            keys=_key(self.key, points),
            k_max=self.k_max,
            restarts=self.restarts,
            backend=self.backend,
        )
        return paper_score(points, found.labels, found.k, votes)[0]


def _append(
    embeddings: list[Tensor], activations: list[Tensor], new: Tensor, strength: Tensor | None
) -> None:
    """Add a batch to the states after checking that it fits them."""
    if new.dim() != 2:
        raise InputError(f"embeddings must be [images, dimensions], got {list(new.shape)}")
    if strength is not None and strength.shape != new.shape[:1]:
        raise InputError(
            f"activations must be [{new.shape[0]}], one for each image, got {list(strength.shape)}"
        )
    if embeddings and (strength is None) == bool(activations):
        raise InputError(
            "activations must come with every update or with none; call reset() to start anew"
        )
    embeddings.append(new)
    if strength is not None:
        activations.append(strength)


def _score(metric: PolysemanticityScore | EffectiveFeatures) -> Score:
    points = dim_zero_cat(metric.embeddings)[None]
    strength = dim_zero_cat(metric.activations)[None] if metric.activations else None
    return polysemanticity_score(
        points,
        strength,
        keys=_key(metric.key, points),
        k_max=metric.k_max,
        restarts=metric.restarts,
        backend=metric.backend,
    )


def _key(key: int, like: Tensor) -> Tensor:
    return torch.tensor([key], dtype=torch.int64, device=like.device)
