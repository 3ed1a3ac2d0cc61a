"""K-means by faiss, one problem at a time, on the CPU or a CUDA device."""

from typing import Any

import torch
from torch import Tensor

from polylight.clustering.library import solve_each
from polylight.errors import InputError

# Enough for the distances of one problem; the default takes 1.5 GiB of the device.
_TEMPORARY_BYTES = 64 << 20


def solve(
    points: Tensor, valid: Tensor, keys: Tensor, k_max: int, restarts: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Find the clusters of every neuron for every K.

    The arguments are those of :func:`polylight.clustering.library.solve_each`.
    Lloyd's iteration is faiss's, in float32, from the shared starts (Johnson, Douze & Jegou 2019,
    "Billion-scale similarity search with GPUs").

    Raises:
        InputError: faiss is not installed, or is without CUDA while the points are on it.
    """
    try:
        import faiss  # after torch: the other order can crash
    except ImportError as error:
        raise InputError(
            "backend 'faiss' needs faiss, which is not installed; install it with "
            'pip install "polylight[faiss]" (CPU) or pip install "polylight[faiss-cu13]" '
            "(CUDA 13), or use backend 'gram'"
        ) from error

    index = _index(faiss, points)
    settings = faiss.ClusteringParameters()
    settings.niter = iterations
    # One point is enough: faiss would complain on stderr below 39 a cluster and drop points
    # above 256.
    settings.min_points_per_centroid = 1
    settings.max_points_per_centroid = points.shape[1]

    def run(rows: Tensor, start: Tensor) -> Tensor:
        data, first = rows.float().cpu().numpy(), start.float().cpu().numpy()
        clustering = faiss.Clustering(rows.shape[1], len(start), settings)
        faiss.copy_array_to_vector(first.ravel(), clustering.centroids)
        index.reset()
        clustering.train(data, index)
        _, nearest = index.search(data, 1)
        return torch.from_numpy(nearest[:, 0]).to(rows.device)

    return solve_each(points, valid, keys, k_max, restarts, run)


def _index(faiss: Any, points: Tensor) -> Any:
    """An exact index on the device of the points."""
    if not points.is_cuda:
        return faiss.IndexFlatL2(points.shape[-1])
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            f"the embeddings are on {points.device} and the installed faiss has no CUDA; install "
            'pip install "polylight[faiss-cu13]" in place of faiss-cpu, move the embeddings to '
            "the CPU, or use backend 'gram'"
        )
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device = points.device.index
    return faiss.GpuIndexFlatL2(resources, points.shape[-1], config)
