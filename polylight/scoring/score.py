"""The score: the best clustering, and the evidence that there is more than one mode."""

from typing import NamedTuple

import torch
from torch import Tensor

from polylight.clustering import Backend, Selection, cluster, one_mode_test
from polylight.evidence import EVEN_ODDS
from polylight.kernels.choice import Kernels
from polylight.scoring.functional import cluster_similarity, effective_features, rao_score
from polylight.scoring.points import check_images, cluster_sums
from polylight.scoring.strength import relative_strength


class Partition(NamedTuple):
    """The best way to part the images of each neuron into more than one cluster.

    Attributes:
        score: float64 [U] in [0, 1], the score if the clusters were sure; NaN for a neuron
            without images that count.
        k: int64 [U], number of clusters; 1 with fewer than four votes, or where splits end there.
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 without a vote.
        weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
    """

    score: Tensor
    k: Tensor
    labels: Tensor
    weights: Tensor
    bic: Tensor


class Score(NamedTuple):
    """The score of each neuron and what it rests on.

    Attributes:
        score: float64 [U] in [0, 1]; NaN for a neuron without images that count.
        sure: float64 [U] in [0, 1], the score if the clusters were sure; NaN likewise.
        k: int64 [U], number of clusters; 1 where one mode is likelier than several.
        k_eff: float64 [U], effective number of features, 1 / (1 - score).
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 without a vote.
        cluster_weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
        separation: float64 [U], how much better the images fall into clusters than one mode's
            would, in standard deviations (:func:`polylight.clustering.one_mode_test`); NaN with
            fewer than four votes.
        p_value: float64 [U] in (0, 1], of the same test.
    """

    score: Tensor
    sure: Tensor
    k: Tensor
    k_eff: Tensor
    labels: Tensor
    cluster_weights: Tensor
    bic: Tensor
    separation: Tensor
    p_value: Tensor


def mode_evidence(separation: Tensor) -> Tensor:
    r"""Weigh several modes against one.

    .. math:: e = \frac{1}{1 + \exp(4 - T)}

    for the separation T: even odds at T = 4, and e times as much for each unit more.

    Args:
        separation: float [...], from :func:`polylight.clustering.one_mode_test`.

    Returns:
        The weight of several modes, in [0, 1]; 0 where there is no test.
    """
    # torch.sigmoid rounds the last elements of a tensor unlike the others.
    return torch.reciprocal(1.0 + torch.exp(EVEN_ODDS - separation)).nan_to_num(nan=0.0)


def discounted(score: Tensor, separation: Tensor) -> Tensor:
    r"""Take up to half of a partition's score away, for want of evidence of more than one mode.

    .. math:: S = \frac{1 + e}{2} \, S_K

    with the evidence e of :func:`mode_evidence`. How unlike the clusters are comes out alike with
    images made anew; whether they are clusters at all does so less, so that a score which depends
    on that altogether would order neurons of one feature by chance.

    Args:
        score: float [...] in [0, 1], of the best partition (:func:`partition_score`).
        separation: float [...], from :func:`polylight.clustering.one_mode_test`.

    Returns:
        The score, between half of ``score`` and all of it; 0 where there is no test, as the images
        are all the same or too few.
    """
    tested = ~separation.isnan()
    return score * tested * (0.5 + 0.5 * mode_evidence(separation))


def partition_score(
    embeddings: Tensor,
    activations: Tensor | None,
    *,
    votes: Tensor,
    keys: Tensor,
    baseline: Tensor | None = None,
    k_min: int = 2,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Partition:
    r"""Cluster the images of every neuron and score the clusters as if they were sure.

    .. math:: S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    with :math:`u_i` the unit mean of the normalised embeddings of cluster i and :math:`p_i` its
    share of the images' strengths ``max(0, a - baseline) / best`` (:func:`rao_score`).

    Args:
        embeddings: As for :func:`polysemanticity_score`, like all the others but k_min.
        activations: float [U, N] or None.
        votes: bool [U, N].
        keys: int64 [U].
        baseline: float [U] or None.
        k_min: Smallest number of clusters that ``bic`` may choose.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K.
        backend: What clusters.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        The partition of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.
    """
    check_images(embeddings, votes)
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = cluster(
        directions,
        votes=votes,
        keys=keys,
        k_min=min(k_min, k_max),
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
    )
    if activations is None:
        strength = votes.double()
    else:
        strength = relative_strength(activations, votes, baseline)
    weights = cluster_sums(strength[..., None], found.labels, k_max)[0].squeeze(-1)
    count = strength.sum(1).square() / strength.square().sum(1)
    score = rao_score(weights, cluster_similarity(directions, found.labels, k_max), count)
    share = weights / weights.sum(1, keepdim=True)
    return Partition(score, found.k, found.labels, share, found.bic)


def polysemanticity_score(
    embeddings: Tensor,
    activations: Tensor | None = None,
    *,
    votes: Tensor | None = None,
    keys: Tensor | None = None,
    baseline: Tensor | None = None,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Score:
    r"""Cluster the images of every neuron and score how many unrelated features drive it.

    .. math:: S = \frac{1 + e}{2} \, S_K, \qquad
              S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    for the best clustering into more than one (:func:`partition_score`), half of which counts by
    the evidence e that there is more than one mode at all (:func:`discounted`). The number of
    clusters is that of the likelier case.

    Args:
        embeddings: float [U, N, D], centred by a reference, not by the
            neuron's own mean, which would make every neuron look polysemantic. They are
            l2-normalised here.
        activations: float [U, N], objective of each image, in the neuron's own unit; None counts
            every image alike.
        votes: bool [U, N], which images count (:func:`strength_gate`); None lets all count.
        keys: int64 [U], random stream of each neuron; None gives all neurons stream 0.
        baseline: float [U], objective of random start images; 0 if None.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K where there is more than one mode: ``bic``; or ``xmeans``,
            ``gmeans`` or ``sigclust``, which may also stop at one cluster
            (:func:`polylight.clustering.cluster`).
        backend: ``gram``, ``faiss`` or ``cuml``.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        Score, clusters and their weights of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.
    """
    if votes is None:
        votes = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    check_images(embeddings, votes)
    if keys is None:
        keys = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = partition_score(
        directions,
        activations,
        votes=votes,
        keys=keys,
        baseline=baseline,
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
    )
    test = one_mode_test(directions, votes, keys, k_max, kernels=kernels)
    score = discounted(found.score, test.separation)
    single = ~(test.separation > EVEN_ODDS)
    first = torch.zeros_like(found.weights).index_fill_(1, keys.new_zeros(1), 1.0)
    # There is no share of nothing.
    first = first.masked_fill(found.weights.isnan(), torch.nan)
    return Score(
        score,
        found.score,
        found.k.masked_fill(single, 1),
        effective_features(score),
        torch.where(single[:, None] & votes, 0, found.labels),
        torch.where(single[:, None], first, found.weights),
        found.bic,
        test.separation,
        test.p_value,
    )
