"""K-means on Gram matrices for CPUs: one neuron after the other, in vectors of points.

What :mod:`polylight.kernels.gram_kmeans` computes by products with the memberships is kept up to
date here: a point that moves adds its row of the Gram matrix to one cluster and takes it from
another, so what has settled costs nothing.
"""

import numpy as np
import torch
from torch import Tensor

from polylight.kernels.compiling import LANES, aligned
from polylight.kernels.gram_kmeans import EXCHANGES, LEAST_GAIN
from polylight.kernels.gram_kmeans_loops import GROUP, Clusters, Space, solve_all
from polylight.kernels.seeding import EQUAL, TRIALS
from polylight.kernels.teams import deal_out


def solve(
    gram: Tensor, counts: Tensor, limits: Tensor, uniform: Tensor, k_max: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram_kmeans.solve`; the tensors are on a CPU.

    Of starts that end equally well up to rounding another may be kept than there.
    """
    num, images, _ = gram.shape
    gram = torch.nn.functional.pad(gram, (0, -images % LANES))
    labels = torch.empty(num, k_max, images, dtype=torch.int8)
    inertia = torch.empty(num, k_max, dtype=torch.float64)
    batch = [t.contiguous().numpy() for t in (gram, counts, limits, uniform, labels, inertia)]

    def run(start: int, stop: int) -> None:
        space = _space(k_max, gram.shape[-1])
        rows = (part[start:stop] for part in batch)
        solve_all(space, iterations, EXCHANGES, LEAST_GAIN, EQUAL, TRIALS, *rows)

    deal_out(num, run)
    return labels, inertia


def _space(k_max: int, width: int) -> Space:
    def clusters() -> Clusters:
        return Clusters(aligned(k_max, width), aligned(k_max), aligned(k_max))

    floats = ("norms", "nearest", "cumulative", "least", "leave")
    integers = ("start_labels", "labels", "closest")
    return Space(
        start=clusters(),
        now=clusters(),
        reach=aligned(TRIALS, width),
        enter=aligned(-(-k_max // GROUP) * GROUP, width),
        moving=aligned(width + 1, dtype=np.int64),
        **{name: aligned(width) for name in floats},
        **{name: aligned(width, dtype=np.int64) for name in integers},
    )
