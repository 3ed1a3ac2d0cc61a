"""How sure a score is: its interval, the stability of K, and what was not seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from polylight.clustering import Selection
from polylight.errors import InputError
from polylight.kernels import Kernels, needs_float64, philox_normal, philox_uniform
from polylight.run.schema import SEPARATION_THRESHOLD
from polylight.scoring.points import coordinates
from polylight.scoring.score import Score, partition_score, weighted_score

# Numbers held per chunk of half samples: what fits the cache of a CPU, and 128 MiB on a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}
# Halves are drawn by counters beyond those with which k-means draws from the same key.
_FIRST_DRAW = 2**32
# Beyond those of any half.
_FIRST_SHIFT = 2**33
# Of the separation of images made anew: 1 for a single mode; measured, 1.06 over 72 channels of
# two seeds each, and 0.4 to 0.7 for maxima of twenty (to 1.6 for channels, where it hardly counts).
_DEVIATION = 1.0
# Images that repel each other are spread over a neuron's features more evenly than independent
# ones, so scores of such images made anew vary by this part of what halves say.
_REPELLED = 0.5
# Two-sided 95 % of a normal distribution.
_Z = 1.959963984540054


class Uncertainty(NamedTuple):
    """How far the score and the K of each neuron can be relied on.

    Attributes:
        low: float64 [U] in [0, score], lower end of the 95 % interval; NaN where the score is.
        high: float64 [U] in [score, 1], upper end; NaN likewise.
        k_stability: float64 [U] in [0, 1], share of half samples with the same K; NaN likewise.
    """

    low: Tensor
    high: Tensor
    k_stability: Tensor


@needs_float64
def score_uncertainty(
    embeddings: Tensor,
    score: Score,
    activations: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    keys: Tensor | None = None,
    baseline: Tensor | None = None,
    k_max: int = 8,
    draws: int = 200,
    restarts: int = 8,
    selection: Selection = "bic",
    kernels: Kernels = "auto",
    repelled: bool = False,
) -> Uncertainty:
    """Score random halves of the images of every neuron, to see how much the score varies.

    Each half is drawn without replacement and clustered anew with its own K > 1
    (:func:`partition_score`). The spread over halves of n images is that of n images drawn anew
    (delete-d jackknife, Shao & Wu 1989; Politis & Romano 1994). An ordinary bootstrap repeats
    images, which k-means and BIC take for clusters. A half is weighted as all the
    images are (:func:`polylight.scoring.weighted_score`), and since their
    separation is in units of its deviation, each draw moves it by a normal number.
    :func:`score_interval` makes the interval. A half of n // 2 images reaches K = n // 4, so that
    the stability of a larger K is 0.

    Args:
        embeddings: float [U, N, D], as for :func:`polysemanticity_score`, like the next four.
        score: What :func:`polysemanticity_score` gave for them.
        activations: float [U, N], in the neuron's own unit; None counts every image alike.
        valid: bool [U, N], which images count; None lets all count.
        keys: int64 [U], random stream of each neuron; None gives all neurons stream 0.
        baseline: float [U], objective of random start images; 0 if None.
        k_max: Largest number of clusters, 1..127.
        draws: Half samples, > 0.
        restarts: Starts of k-means for each K of a half sample, > 0.
        selection: What chooses K; that of the score.
        kernels: Which implementation clusters.
        repelled: Whether the images repelled each other while they were made.

    Returns:
        Interval and stability of each neuron, the same in any batch.

    Raises:
        InputError: A shape, type or number is wrong.
    """
    if embeddings.dim() != 3 or score.score.shape != embeddings.shape[:1]:
        raise InputError(
            "embeddings must be [neurons, images, dimensions] with a score for each neuron, got "
            f"{list(embeddings.shape)} and scores {list(score.score.shape)}"
        )
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}; an interval needs about 200")
    device = embeddings.device
    num, images, dims = embeddings.shape
    if valid is None:
        valid = torch.ones(num, images, dtype=torch.bool, device=device)
    if keys is None:
        keys = torch.zeros(num, dtype=torch.int64, device=device)
    if valid.shape != (num, images) or keys.shape != (num,):
        raise InputError(
            f"valid must be [{num}, {images}] and keys [{num}], as the embeddings, got "
            f"{list(valid.shape)} and {list(keys.shape)}"
        )
    if activations is not None and activations.shape != valid.shape:
        raise InputError(
            f"activations must be {list(valid.shape)}, one for each image, got "
            f"{list(activations.shape)}"
        )
    # Every half is looked at anew, and of a few images a few coordinates say as much as all.
    points = coordinates(embeddings, valid)
    places = max(1, images // 2)
    budget = _CHUNK.get(device.type, _CHUNK["cpu"])
    parts = []
    size = max(1, budget // (places * points.shape[2]))
    for start in range(0, max(num * draws, 1), size):
        chunk = torch.arange(start, min(start + size, num * draws), device=device)
        rows = chunk // draws
        half = half_samples(valid[rows], keys[rows], chunk % draws)
        # Members first, in the order of the images; the padded width does not depend on the batch.
        members = half.int().argsort(dim=1, descending=True, stable=True)[:, :places]  # [M, N / 2]
        found = partition_score(
            points[rows[:, None], members],
            None if activations is None else activations[rows[:, None], members],
            valid=half.gather(1, members),
            keys=keys[rows],
            baseline=None if baseline is None else baseline[rows],
            k_max=min(k_max, max(1, places // 2)),
            restarts=restarts,
            selection=selection,
            kernels=kernels,
            dims=dims,
        )
        shift = philox_normal(keys[rows], chunk % draws + _FIRST_SHIFT, 1)[:, 0].double()
        separation = score.separation[rows] + _DEVIATION * shift
        single = ~(separation > SEPARATION_THRESHOLD)
        scores = weighted_score(found.score, found.mean_distance, separation)
        parts.append((scores, found.k.masked_fill(single, 1)))
    halves, k = (torch.cat(part).view(num, draws) for part in zip(*parts, strict=True))
    low, high = score_interval(score.score, halves, valid.sum(1), repelled=repelled)
    scored = ~halves.isnan()
    same = (k == score.k[:, None]) & scored
    stability = same.sum(1).double() / scored.sum(1)
    return Uncertainty(low, high, stability.masked_fill(score.score.isnan(), torch.nan))


def half_samples(valid: Tensor, keys: Tensor, draws: Tensor) -> Tensor:
    """Draw a random half of the images of each neuron, without replacement.

    Args:
        valid: bool [U, N], images to draw from.
        keys: int64 [U], random stream of each neuron.
        draws: int64 [U], >= 0, which half of the stream it is.

    Returns:
        bool [U, N], n // 2 of the n valid, but the only one where n = 1. A pure function of key,
        draw and valid.
    """
    uniform = philox_uniform(keys, draws + _FIRST_DRAW, valid.shape[1])
    rank = uniform.masked_fill(~valid, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    size = valid.sum(1, keepdim=True)
    half: Tensor = rank < torch.maximum(size // 2, size.clamp_max(1))
    return half


def score_interval(
    score: Tensor, halves: Tensor, counts: Tensor, *, repelled: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Turn scores of half samples into a 95 % interval of the score.

    .. math:: \mathrm{low} = S - c \max(0, S - Q_\alpha + \max(0, Q_{1/2} - S)), \quad
              \mathrm{high} = \max\Bigl(S + c \max(0, Q_{1-\alpha} - S),
              1 - (1 - S)\bigl(\tfrac{n}{n+1}\bigr)^2\Bigr), \quad
              \alpha = \Phi(-t_{n-1,\,0.975})

    Q are quantiles over the halves, with Student's t in place of the normal 1.96 (expanded
    percentiles, Hesterberg 2015; the spread of halves needs no factor). Images of one feature are
    cut into clusters that are less alike where they are fewer: the lower end is moved down by as
    much as the median half scores above all the images. Halves vary as independent images do, for
    which c is 1; images that repel each other vary half as much. The last bound is for features
    that no image shows: what S would be if one more image, of the n + 1, showed something unrelated
    to all that was seen.

    Args:
        score: float64 [U] in [0, 1], of all images; NaN where there is none.
        halves: float64 [U, B], scores of half samples; NaN ones are left out.
        counts: int64 [U], number n of images behind the score.
        repelled: Whether the images repelled each other while they were made.

    Returns:
        Lower and upper ends, float64 [U] in [0, 1]; NaN where the score is.

    Raises:
        InputError: The shapes do not fit.
    """
    if halves.dim() != 2 or not score.shape == counts.shape == halves.shape[:1]:
        raise InputError(
            "score and counts must be [neurons] and halves [neurons, draws], got "
            f"{list(score.shape)}, {list(counts.shape)} and {list(halves.shape)}"
        )
    images = counts.double()
    level = _expanded_level(images)
    ordered = halves.double().sort(1).values  # NaN come last
    last = (~halves.isnan()).sum(1).clamp_min(1) - 1
    below, above = _at(ordered, level * last), _at(ordered, (1.0 - level) * last)
    excess = (_at(ordered, 0.5 * last.double()) - score).clamp_min(0.0)
    part = _REPELLED if repelled else 1.0
    # The score itself stays within, to the bit.
    low = torch.fmin(score, score - part * (score - (below - excess).clamp_min(0.0)))
    unseen = 1.0 - (1.0 - score) * (images / (images + 1.0)).square()
    high = torch.maximum(torch.fmax(score, score + part * (above - score)), unseen)
    nothing = score.isnan()
    return low.masked_fill(nothing, torch.nan), high.masked_fill(nothing, torch.nan)


@needs_float64
def coverage(labels: Tensor) -> Tensor:
    r"""Estimate how much of what drives a neuron its images have shown.

    .. math:: C = 1 - f_1 / n

    for n images, :math:`f_1` of them alone in their cluster: the probability that one more image
    shows a feature already seen (Good 1953, after Turing).

    Args:
        labels: int64 [U, N], cluster of each image, -1 where invalid.

    Returns:
        float64 [U] in [0, 1]; NaN for a neuron without valid.
    """
    valid = labels >= 0
    alike = (labels[:, :, None] == labels[:, None]).sum(-1)
    alone = ((alike == 1) & valid).sum(1)
    return 1.0 - alone.double() / valid.sum(1)


def _expanded_level(images: Tensor) -> Tensor:
    """Level of the lower quantile for n images, float64 [U]: below 0.025, and that for large n."""
    degrees = (images - 1.0).clamp_min(1.0)
    square = _Z * _Z
    # Cornish and Fisher's expansion of Student's quantile (Abramowitz & Stegun 26.7.5).
    student = _Z * (
        1.0
        + (square + 1.0) / (4.0 * degrees)
        + (5.0 * square**2 + 16.0 * square + 3.0) / (96.0 * degrees.square())
    )
    level: Tensor = torch.special.ndtr(-student)
    return level


def _at(ordered: Tensor, position: Tensor) -> Tensor:
    """Read rows [U, B] at fractional positions [U], between neighbours in proportion."""
    before = position.floor()
    index = before.long()[:, None]
    left = ordered.gather(1, index).squeeze(1)
    right = ordered.gather(1, (index + 1).clamp_max(ordered.shape[1] - 1)).squeeze(1)
    # At a whole position the next number, which may be NaN, has no part.
    return torch.where(position == before, left, torch.lerp(left, right, position - before))
