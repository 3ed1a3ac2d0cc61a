"""The scores as torchmetrics metrics of one neuron, whose images arrive in batches."""

from torch import Tensor

from polylight.clustering import cluster
from polylight.scoring.base import ClusteredMetric
from polylight.scoring.functional import paper_score


class PolysemanticityScore(ClusteredMetric):
    r"""How many unrelated features drive one neuron, from 0 (one) to 1 (many).

    .. math:: S = e \, \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    over the clusters of its images, weighted by e, which says how plainly there is more than one
    (:func:`polylight.scoring.polysemanticity_score`).

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
        baseline: Activation of random images; what is not above it counts for nothing.
        kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        InputError: A shape does not fit, a value is NaN or infinite, only some updates have
            activations, or none of them is above the baseline.

    Example:
        >>> import torch
        >>> from polylight.scoring import PolysemanticityScore
        >>> metric = PolysemanticityScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Score all the images so far."""
        return self.clusters().score[0]


class EffectiveFeatures(ClusteredMetric):
    r"""Number of equal, unrelated features that would give one neuron its score.

    .. math:: K_{eff} = \frac{1}{1 - S}

    with S of :class:`PolysemanticityScore`, whose inputs and arguments these are.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``k_eff`` (:class:`~torch.Tensor`): float64 scalar in [1, inf].

    Example:
        >>> import torch
        >>> from polylight.scoring import EffectiveFeatures
        >>> metric = EffectiveFeatures()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    plot_lower_bound = 1.0
    plot_upper_bound = None

    def compute(self) -> Tensor:
        """Count the features in all the images so far."""
        return self.clusters().k_eff[0]


class PaperScore(ClusteredMetric):
    r"""The Alic et al. (2025) score of one neuron, kept for comparison.

    .. math:: S = C + D - C D

    on k-means clusters of raw embeddings, K by the Bayesian information criterion
    (:func:`polylight.scoring.paper_score`). Arguments are those of :class:`PolysemanticityScore`;
    activations play no part.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``score`` (:class:`~torch.Tensor`): float64 scalar in [0, 1].

    Example:
        >>> import torch
        >>> from polylight.scoring import PaperScore
        >>> metric = PaperScore()
        >>> metric.update(torch.eye(2).repeat_interleave(8, dim=0))
        >>> metric.compute()
        tensor(0.5333, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Score all the images so far."""
        points, _, valid = self.images()
        found = cluster(
            points,
            valid=valid,
            keys=self.keys(self.key),
            k_max=self.k_max,
            restarts=self.restarts,
            backend=self.backend,
        )
        return paper_score(points, found.labels, found.k, valid)[0]
