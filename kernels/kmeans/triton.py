"""K-means on Gram matrices for CUDA: every start of every neuron and K in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polylight.kernels.kmeans.reference import EXCHANGES, LEAST_GAIN
from polylight.kernels.kmeans.torch import choose_seeds, distances, inertia_of
from polylight.kernels.launch import launch

# Numbers of a tile, clusters times points, that each thread holds; and the most threads there are.
_PER_THREAD, _THREADS = 16, 512


def fits(images: int, k_max: int) -> bool:
    """Whether the clusters of so many images stay in the registers of one program.

    That is up to 1,024 images with k_max = 8, both rounded up to powers of two.
    """
    return _tile(images) * _tile(k_max) <= _PER_THREAD * _THREADS


def _tile(size: int) -> int:
    return max(2, 1 << (size - 1).bit_length())


def gram_kmeans(
    gram: Tensor, counts: Tensor, limits: Tensor, uniform: Tensor, k_max: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram_kmeans`; for what :func:`fits`.

    The host does not wait for the device.
    """
    num, images, _ = gram.shape
    restarts = uniform.shape[1]
    gram = gram.contiguous()
    valid = torch.arange(images, device=gram.device) < counts[:, None]
    whole = torch.where(valid, 0, -1).to(torch.int8)
    whole_inertia = inertia_of(gram, whole[:, None], 1)
    if num == 0 or k_max == 1:
        return whole[:, None].expand(-1, k_max, -1), whole_inertia.expand(-1, k_max)
    seeds = choose_seeds(distances(gram, counts), counts, uniform)
    shape = num, k_max - 1, restarts
    labels = torch.empty(*shape, images, dtype=torch.int8, device=gram.device)
    inertia = torch.empty(shape, dtype=torch.float64, device=gram.device)
    clusters, points = _tile(k_max), _tile(images)
    launch(
        _solve_kernel,
        inertia.numel(),
        gram,
        counts.contiguous(),
        limits.contiguous(),
        seeds.contiguous(),
        labels,
        inertia,
        images,
        k_max,
        restarts,
        iterations,
        max(EXCHANGES, k_max),
        LEAST_GAIN,
        K=clusters,
        N=points,
        num_warps=max(1, clusters * points // (32 * _PER_THREAD)),
    )
    best = inertia.argmin(-1, keepdim=True)  # [U, k_max - 1, 1]
    # Above its limit nothing was written.
    wanted = torch.arange(2, k_max + 1, device=gram.device) <= limits[:, None]
    found = labels.take_along_dim(best[..., None], 2).squeeze(2)
    within = inertia.take_along_dim(best, 2).squeeze(2)
    found = torch.where(wanted[..., None], found, whole[:, None])
    within = torch.where(wanted, within, whole_inertia)
    return torch.cat([whole[:, None], found], 1), torch.cat([whole_inertia, within], 1)


@triton.jit
def _gather(
    gram_ptr: tl.tensor,
    labels: tl.tensor,
    count: tl.tensor,
    images: tl.tensor,
    K: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """Build up the clusters from the labels: products [K, N], squares [K], sizes [K]."""
    points, clusters = tl.arange(0, N), tl.arange(0, K)
    products = tl.zeros([K, N], tl.float64)
    for point in range(0, count):
        label = tl.sum(tl.where(points == point, labels, 0))
        row = tl.load(gram_ptr + point * images + points, mask=points < count, other=0.0)
        products += tl.where(clusters[:, None] == label, row[None, :], 0.0)
    member = clusters[:, None] == labels[None, :]
    squares = tl.sum(tl.where(member, products, 0.0), axis=1)
    return products, squares, tl.sum(member.to(tl.float64), axis=1)


@triton.jit
def _start(
    gram_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    norms: tl.tensor,
    count: tl.tensor,
    images: tl.tensor,
    k: tl.tensor,
    N: tl.constexpr,
) -> tl.tensor:
    """Label each point with the first of its nearest seeds; -1 for those that are not valid."""
    points = tl.arange(0, N)
    labels = tl.zeros([N], tl.int32)
    nearest = tl.full([N], float("inf"), tl.float64)
    for j in range(0, k):
        seed = tl.load(seeds_ptr + j)
        row = tl.load(gram_ptr + seed * images + points, mask=points < count, other=0.0)
        norm = tl.load(gram_ptr + seed * images + seed)
        distance = norm + norms - 2.0 * row
        distance = tl.where(distance > 0.0, distance, 0.0)
        nearer = distance < nearest
        labels = tl.where(nearer, j, labels)
        nearest = tl.where(nearer, distance, nearest)
    return tl.where(points < count, labels, -1)


@triton.jit
def _solve_kernel(
    gram_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    limits_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    labels_ptr: tl.tensor,
    inertia_ptr: tl.tensor,
    images: tl.tensor,
    k_max: tl.tensor,
    restarts: tl.tensor,
    iterations: tl.tensor,
    exchanges: tl.tensor,
    least_gain: tl.tensor,
    K: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Run one start: seeds, Lloyd until settled, exchange until settled.

    Grid: [U (k_max - 1) R], in the order of the results. A program owns the K x N products of
    clusters and points in registers, in float64; points and clusters beyond the last are masked.
    """
    program = tl.program_id(0).to(tl.int64)
    neuron = program // ((k_max - 1) * restarts)
    k = 2 + ((program // restarts) % (k_max - 1)).to(tl.int32)
    restart = program % restarts
    count = tl.load(counts_ptr + neuron).to(tl.int32)
    if tl.load(limits_ptr + neuron) >= k:
        gram_ptr += neuron * images * images
        seeds_ptr += (neuron * restarts + restart) * k_max
        points, clusters = tl.arange(0, N), tl.arange(0, K)
        valid = points < count
        norms = tl.load(gram_ptr + points * (images + 1), mask=valid, other=0.0)
        total = tl.sum(norms)
        labels = _start(gram_ptr, seeds_ptr, norms, count, images, k, N)
        products, squares, sizes = _gather(gram_ptr, labels, count, images, K, N)

        step, going = 0, 1
        while (step < iterations) & (going > 0):
            inverse = 1.0 / tl.maximum(sizes, 1.0)
            # |mean|^2 - 2 x.mean; the point's own norm is the same for every cluster.
            cost = (squares * inverse * inverse)[:, None] - (2.0 * inverse)[:, None] * products
            cost = tl.where((sizes > 0.0)[:, None], cost, float("inf"))
            ranks = tl.where(cost == tl.min(cost, axis=0)[None, :], clusters[:, None], k - 1)
            closest = tl.where(valid, tl.min(ranks, axis=0), -1)
            going = tl.sum((closest != labels).to(tl.int32))
            labels = closest
            if going > 0:
                products, squares, sizes = _gather(gram_ptr, labels, count, images, K, N)
            step += 1

        steps = tl.maximum(exchanges, k)
        step, going = 0, 1
        while (step < steps) & (going > 0):
            weight = sizes / (sizes + 1.0)
            inverse = 1.0 / tl.maximum(sizes, 1.0)
            # An empty cluster costs less than any other, so it is entered first.
            bonus = tl.where(sizes == 0.0, 2.0 * total + 1.0, 0.0)
            offset = squares * inverse * inverse * weight - bonus
            enter = offset[:, None] - (2.0 * inverse * weight)[:, None] * products
            enter += weight[:, None] * norms[None, :]
            own = clusters[:, None] == labels[None, :]
            mates = tl.sum(tl.where(own, sizes[:, None], 0.0), axis=0)
            # The distance to the own mean without its weight m / (m + 1), times m / (m - 1).
            leave = tl.sum(tl.where(own, enter, 0.0), axis=0)
            movable = valid & (mates > 1.0)
            leave *= (mates + 1.0) / tl.where(movable, mates - 1.0, 1.0)
            enter = tl.where(own | (clusters >= k)[:, None], float("inf"), enter)
            gain = tl.where(movable, leave - tl.min(enter, axis=0), float("-inf"))
            best = tl.max(gain)
            going = (best > least_gain * total).to(tl.int32)
            if going > 0:
                point = tl.min(tl.where(gain == best, points, N - 1))
                here = (points == point)[None, :]
                column = tl.sum(tl.where(here, enter, 0.0), axis=1)
                target = tl.min(tl.where(column == tl.min(column), clusters, k - 1))
                source = tl.sum(tl.where(points == point, labels, 0))
                norm = tl.sum(tl.where(points == point, norms, 0.0))
                product = tl.sum(tl.where(here, products, 0.0), axis=1)
                row = tl.load(gram_ptr + point * images + points, mask=valid, other=0.0)
                sign = (clusters == target).to(tl.float64) - (clusters == source).to(tl.float64)
                squares += 2.0 * sign * product + sign * sign * norm
                products += sign[:, None] * row[None, :]
                sizes += sign
                labels = tl.where(points == point, target, labels)
            step += 1

        # Anew, so that rounding has not piled up.
        products, squares, sizes = _gather(gram_ptr, labels, count, images, K, N)
        within = total - tl.sum(squares / tl.maximum(sizes, 1.0))
        # A maximum would hide NaN.
        tl.store(inertia_ptr + program, tl.where(within < 0.0, 0.0, within))
        tl.store(labels_ptr + program * images + points, labels.to(tl.int8), mask=points < images)
