"""What images and neurons are compared by: centred embeddings, and the centres of clusters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from polylight.report.content import Similar, Unreadable
from polylight.run.store import REFERENCE

# Centres of neurons that are compared with all others at a time.
_BLOCK = 512


def read_centre(run_dir: Path) -> tuple[npt.NDArray[np.float32] | None, list[Unreadable]]:
    """Read the mean embedding of a run's reference images.

    Args:
        run_dir: The run's directory.

    Returns:
        Float32 [D], or None where the run kept none or it cannot be read; and then what could not.
    """
    path = run_dir / REFERENCE
    if not path.is_file():
        return None, []
    try:
        with safe_open(path, framework="numpy") as file:
            mean: npt.NDArray[np.float32] = file.get_tensor("mean").astype(np.float32)
    except (SafetensorError, OSError) as error:
        return None, [Unreadable(path=path, reason=str(error).splitlines()[0])]
    return mean, []


def centred(
    embedding: npt.NDArray[np.floating], centre: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.floating]:
    """Take the mean [D] from embeddings [N, D], as the score does; None leaves them raw."""
    if centre is None or embedding.shape[1:] != centre.shape:
        return embedding
    return embedding - centre


def joined(
    embedding: npt.NDArray[np.floating], layer_input: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Put both descriptions of images side by side, as the score does: float32 [N, D + C].

    Args:
        embedding: Float [N, D], centred.
        layer_input: Float [N, C], the input of the neuron's layer; C may be 0.

    Returns:
        The two, each of length 1; the embedding alone where C is 0.
    """
    return np.hstack([unit_vectors(embedding), unit_vectors(layer_input)]).astype(np.float32)


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
