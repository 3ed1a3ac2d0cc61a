"""Scores of other authors as torchmetrics metrics of one neuron."""

from typing import Any

import torch
from torch import Tensor

from polylight.clustering import two_means
from polylight.errors import InputError
from polylight.scoring.alternatives import mean_distance_score, vendi_score, weighted_ms_score
from polylight.scoring.base import ClusteredMetric, NeuronMetric
from polylight.scoring.functional import cluster_similarity, leinster_cobbold_score
from polylight.scoring.halves import semanticlens_score, silhouette_score


class MeanDistanceScore(NeuronMetric):
    r"""Mean cosine distance of two images of one neuron, without clusters.

    .. math:: S = 1 - \frac{1}{n (n - 1)} \sum_{i \ne j} \cos\theta_{ij}

    (:func:`polylight.scoring.mean_distance_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``; they play no part.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 2]; NaN for one image.

    Args:
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import MeanDistanceScore
        >>> metric = MeanDistanceScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5333, dtype=torch.float64)
    """

    plot_upper_bound = 2.0

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, _, valid = self.images()
        return mean_distance_score(points, valid)[0]


class WeightedMSScore(NeuronMetric):
    r"""Mean cosine distance of two images of one neuron, weighted by their activations.

    .. math:: S = 1 - \frac{\sum_{i<j} a_i a_j \cos\theta_{ij}}{\sum_{i<j} a_i a_j}

    with activations a scaled to [0, 1] over the images of the neuron: one minus the
    monosemanticity score of Pach et al. 2025 (:func:`polylight.scoring.weighted_ms_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor`): float ``(N,)``, how strongly each image drives the
      neuron, in its own unit.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 2]; NaN where fewer than two
      images are stronger than the weakest.

    Args:
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or an update has no activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import WeightedMSScore
        >>> metric = WeightedMSScore()
        >>> metric.update(torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    plot_upper_bound = 2.0

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, strength, valid = self.images()
        if strength is None:
            raise InputError(
                "WeightedMSScore weighs images by their activations and got none; give them with "
                "every update, or use MeanDistanceScore, which does without"
            )
        return weighted_ms_score(points, strength, valid)[0]


class VendiScore(NeuronMetric):
    r"""One minus the inverse of the effective number of different images of one neuron.

    .. math:: S = 1 - \frac{1}{V}, \qquad V = \exp\Bigl(-\sum_i \lambda_i \log \lambda_i\Bigr)

    with :math:`\lambda` the eigenvalues of the matrix of :math:`\cos\theta_{ij} / n` (Friedman &
    Dieng 2023; :func:`polylight.scoring.vendi_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``; they play no part.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 1].

    Args:
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import VendiScore
        >>> metric = VendiScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, _, valid = self.images()
        return vendi_score(points, valid)[0]


class LeinsterCobboldScore(ClusteredMetric):
    r"""One minus the inverse of the effective number of features of one neuron, of any order.

    .. math:: S_q = 1 - \frac{1}{D_q}, \qquad
              D_q = \Bigl(\sum_i p_i (Zp)_i^{q-1}\Bigr)^{\frac{1}{1-q}}

    over the clusters of its images (Leinster & Cobbold 2012;
    :func:`polylight.scoring.leinster_cobbold_score`). Of order 2 it is
    :class:`PolysemanticityScore` without the correction for the number of images.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``, how strongly each image
      drives the neuron; either every update has them or none.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 1].

    Args:
        order: q, in [0, inf]: 0 counts rare features as much as any other, 2 by the chance of
            meeting them.
        kwargs: Those of :class:`PolysemanticityScore`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import LeinsterCobboldScore
        >>> metric = LeinsterCobboldScore(order=0)
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, order: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order

    def compute(self) -> Tensor:
        """Score all the images so far."""
        found = self.clusters()
        similarity = cluster_similarity(self.images()[0], found.labels, self.k_max)
        return leinster_cobbold_score(found.cluster_weights, similarity, self.order)[0]


class SemanticLensScore(NeuronMetric):
    r"""Cosine distance of the centres of two clusters of one neuron's images.

    .. math:: S = 1 - \cos(c_1, c_2)

    of k-means with K = 2 (Dreyer et al. 2025; :func:`polylight.scoring.semanticlens_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron; those of
      the authors are neither centred nor normalised.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``; where a cluster has fewer
      than two images, by which the strongest are taken.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 2]; NaN for one image.

    Args:
        restarts: Starts of k-means, > 0.
        key: Random stream of the neuron.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import SemanticLensScore
        >>> metric = SemanticLensScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    plot_upper_bound = 2.0

    def __init__(self, restarts: int = 32, key: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.restarts, self.key = restarts, key

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, strength, valid = self.images()
        labels = two_means(points, valid, self.keys(self.key), self.restarts)
        return semanticlens_score(points, labels, valid, strength)[0]


class SilhouetteScore(NeuronMetric):
    r"""How much better one neuron's images fit their own of two clusters than the other.

    .. math:: S = \frac{1}{n} \sum_i \frac{b_i - a_i}{\max(a_i, b_i)}

    with a_i and b_i the mean distances of image i to its own and to the other cluster of k-means
    with K = 2 (Rousseeuw 1987; :func:`polylight.scoring.silhouette_score`).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``embeddings`` (:class:`~torch.Tensor`): float ``(N, D)``, images of the neuron, centred by
      a reference.
    - ``activations`` (:class:`~torch.Tensor` or None): float ``(N,)``; they play no part.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [-1, 1]; NaN for fewer than four
      images.

    Args:
        restarts: Starts of k-means, > 0.
        key: Random stream of the neuron.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, or only some updates have activations.

    Example:
        >>> import torch
        >>> from polylight.scoring import SilhouetteScore
        >>> metric = SilhouetteScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    plot_lower_bound = -1.0

    def __init__(self, restarts: int = 32, key: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.restarts, self.key = restarts, key

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, _, valid = self.images()
        unit = torch.nn.functional.normalize(points.double(), dim=-1)
        labels = two_means(unit, valid, self.keys(self.key), self.restarts)
        return silhouette_score(unit, labels, valid)[0]
