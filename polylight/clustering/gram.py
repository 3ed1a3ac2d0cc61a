"""K-means on Gram matrices, all problems at once, on any device."""

from torch import Tensor

from polylight.clustering.bic import reachable
from polylight.kernels import Backend, centred_gram, gram_kmeans, kmeans_draws


def solve(
    embeddings: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    iterations: int,
    kernels: Backend,
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
    uniform = kmeans_draws(keys, k_max, restarts)
    gram, order = centred_gram(embeddings, valid, backend=kernels)
    found = gram_kmeans(gram, counts, limits, uniform, k_max, iterations, backend=kernels)
    return *found, order
