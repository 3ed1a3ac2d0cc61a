"""Neurons that share a feature: the cosine between the centres of their clusters."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polylight.report.content import Similar

# Centres of neurons that are compared with all others at a time.
_BLOCK = 512


def unit_vectors(embedding: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Normalise embeddings [N, D] to length 1: float64 [N, D]; of zeros nothing is made."""
    vectors = embedding.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, length, out=vectors, where=length != 0)
    return vectors


def cluster_centres(
    embedding: npt.NDArray[np.floating], label: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Find the direction of each cluster: the mean of its unit embeddings, normalised.

    Args:
        embedding: Float [N, D].
        label: Int [N], cluster of each embedding; -1 where invalid.

    Returns:
        Unit vectors, float64 [K, D], by rising label; clusters without an embedding are left out.
    """
    members = [label == cluster for cluster in np.unique(label[label >= 0])]
    means = [unit_vectors(embedding[member]).mean(0) for member in members]
    return unit_vectors(np.stack(means)) if means else np.zeros((0, embedding.shape[1]))


def most_similar(
    centres: Sequence[npt.NDArray[np.floating]], count: int
) -> list[tuple[Similar, ...]]:
    r"""Find the neurons that are most similar to each neuron.

    .. math:: s(u, v) = \max_{i, j} \cos(c_{u i}, c_{v j})

    over the centres of the clusters of both, in float32: two neurons that share one feature are
    similar, whatever else they respond to.

    Args:
        centres: Of each neuron, unit vectors [K, D]; of a neuron without clusters [0, D].
        count: How many to find, > 0.

    Returns:
        Of each neuron up to ``count`` others, the most similar first, among equals by position.

    Note:
        Memory is that of all centres, and 2 KB for each of them.
    """
    found: list[tuple[Similar, ...]] = [() for _ in centres]
    present = np.array([i for i, own in enumerate(centres) if len(own)], dtype=np.int64)
    if len(present) < 2:
        return found
    sizes = np.array([len(centres[i]) for i in present])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    every = np.concatenate([centres[i] for i in present], dtype=np.float32)  # [sum of K, D]
    first = 0
    while first < len(present):
        # As many neurons as fit in a block; at least one.
        last = int(np.searchsorted(starts, starts[first] + _BLOCK, side="right")) - 1
        last = max(last, first + 1)
        cosine = every[starts[first] : starts[last]] @ every.T
        # Over the clusters of the one neuron, then of the other.
        cosine = np.maximum.reduceat(cosine, starts[first:last] - starts[first], axis=0)
        cosine = np.maximum.reduceat(cosine, starts[:-1], axis=1)  # [neurons of the block, all]
        own = np.arange(first, last)
        cosine[own - first, own] = -np.inf
        for neuron, row in zip(own, cosine, strict=True):
            best = np.argpartition(-row, min(count, len(row) - 1))[:count]
            best = best[np.lexsort((best, -row[best]))]
            found[present[neuron]] = tuple(
                Similar(position=int(present[i]), cosine=float(min(max(row[i], -1.0), 1.0)))
                for i in best
                if row[i] > -np.inf
            )
        first = last
    return found
