"""K-means on Gram matrices, all problems at once, on any device."""

from torch import Tensor

from polylight.clustering.bic import reachable
from polylight.kernels import centred_gram, gram_kmeans
from polylight.kernels.choice import Chosen
from polylight.kernels.seeding import draw


def solve(
    embeddings: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    iterations: int,
    kernels: Chosen,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the clusters of every neuron for every K.

    Args:
        embeddings: float [U, N, D]; invalid ones are ignored.
        valid: bool [U, N].
        keys: int64 [U], random stream of each neuron.
        k_max: Largest number of clusters.
        restarts: Starts for each K.
        iterations: The most Lloyd iterations of a start.
        kernels: Which implementation runs.

    Returns:
        int8 [U, k_max, N], labels of the points for K = 1..k_max, -1 where invalid;
        float64 [U, k_max], inertia; int64 [U, N], which image each point is. A K out of reach is
        left as if it were one cluster.
    """
    counts = valid.sum(-1)
    limits = reachable(counts, k_max).sum(-1)
    uniform = draw(keys, k_max, restarts)
    if kernels == "numba":
        from polylight.kernels import centred_gram_numba, gram_kmeans_numba

        gram, order = centred_gram_numba.centred_gram(embeddings, valid)
        return *gram_kmeans_numba.solve(gram, counts, limits, uniform, k_max, iterations), order
    gram, order = centred_gram.centred_gram(embeddings, valid)
    if kernels == "triton":
        from polylight.kernels import gram_kmeans_triton as triton

        # Of more images products take most of the time, and the twin's are as fast as any.
        if triton.fits(embeddings.shape[1], k_max):
            return *triton.solve(gram, counts, limits, uniform, k_max, iterations), order
    return *gram_kmeans.solve(gram, counts, limits, uniform, k_max, iterations), order
