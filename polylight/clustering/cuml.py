"""K-means by cuML, one problem at a time, on a CUDA device."""

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from polylight.clustering.library import solve_each
from polylight.errors import InputError


def solve(
    points: Tensor, valid: Tensor, keys: Tensor, k_max: int, restarts: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Find the clusters of every neuron for every K.

    The arguments are those of :func:`polylight.clustering.library.solve_each`.
    Lloyd's iteration is cuML's, in float64, from the shared starts. Points and labels stay on the
    device.

    Raises:
        InputError: cuML is not installed, or the points are not on a CUDA device.
    """
    try:
        from cuml.cluster import KMeans
    except ImportError as error:
        raise InputError(
            "backend 'cuml' needs cuML, which is not installed; install it with "
            "pip install \"polylight[cuml]\" (Linux, CUDA 13), or use backend 'gram'"
        ) from error
    if not points.is_cuda:
        raise InputError(
            f"backend 'cuml' needs embeddings on a CUDA device, got {points.device}; move them "
            "there, or use backend 'gram'"
        )

    def run(rows: Tensor, start: Tensor) -> Tensor:
        model = KMeans(
            n_clusters=len(start), init=start, n_init=1, max_iter=iterations, output_type="cupy"
        )
        # cuML works on a stream of its own.
        torch.cuda.current_stream(rows.device).synchronize()
        model.fit(rows)
        return from_dlpack(model.labels_).long()

    return solve_each(points, valid, keys, k_max, restarts, run)
