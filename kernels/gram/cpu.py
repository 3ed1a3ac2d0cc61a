"""Centred Gram matrices for CPUs: each neuron's points are read once and stay in the cache."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polylight.kernels.compiling import compiled
from polylight.kernels.gram.reference import SAME
from polylight.kernels.memory import LANES, Floats, Integers, aligned
from polylight.kernels.openmp import parallel_for


def centred_gram(embeddings: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram.reference.centred_gram`; the tensors are on a CPU."""
    num, images, dims = embeddings.shape
    if embeddings.dtype not in (torch.float32, torch.float64):
        embeddings = embeddings.float()
    gram = torch.empty(num, images, images, dtype=torch.float64)
    order = torch.empty(num, images, dtype=torch.int64)
    batch = [t.contiguous().numpy() for t in (embeddings, valid, gram, order)]
    even, width = images + images % 2, -(-dims // LANES) * LANES

    def run(start: int, stop: int) -> None:
        rows = (part[start:stop] for part in batch)
        points, products = aligned(even, width), aligned(even, even)
        _solve_all(points, products, aligned(dims), aligned(dims), SAME, *rows)

    parallel_for(num, run)
    return gram, order


@compiled()
def _centre(
    rows: Any, listed: Integers, count: int, points: Floats, mean: Floats, squares: Floats
) -> float:
    """Write the centred points of the images that are listed; return the raw sum of squares."""
    dims = rows.shape[1]
    for d in range(dims):
        mean[d] = 0.0
        squares[d] = 0.0
    for i in range(count):
        row = rows[listed[i]]
        for d in range(dims):
            number = np.float64(row[d])
            mean[d] += number
            squares[d] += number * number
    raw = 0.0
    for d in range(dims):
        raw += squares[d]
        mean[d] /= count
    for i in range(count):
        row, point = rows[listed[i]], points[i]
        for d in range(dims):
            point[d] = np.float64(row[d]) - mean[d]
    return raw


@compiled(any_order=True)
def _products(a: Floats, b: Floats, c: Floats, d: Floats) -> tuple[float, float, float, float]:
    """Inner products ac, ad, bc, bd: each number that is read is used twice."""
    ac = ad = bc = bd = 0.0
    for i in range(len(a)):
        ac += a[i] * c[i]
        ad += a[i] * d[i]
        bc += b[i] * c[i]
        bd += b[i] * d[i]
    return ac, ad, bc, bd


@compiled()
def _multiply(points: Floats, count: int, products: Floats) -> None:
    """Inner products of the points; a row more where their number is odd."""
    for i in range(0, count, 2):
        for j in range(i, count, 2):
            ac, ad, bc, bd = _products(points[i], points[i + 1], points[j], points[j + 1])
            products[i, j] = products[j, i] = ac
            products[i, j + 1] = products[j + 1, i] = ad
            products[i + 1, j] = products[j, i + 1] = bc
            products[i + 1, j + 1] = products[j + 1, i + 1] = bd


@compiled()
def _sort(ranks: Integers, count: int, products: Floats) -> None:
    """Sort the points by distance, the farthest first; equals stay as they are."""
    for i in range(count):
        norm = products[i, i]
        j = i
        while j > 0 and products[ranks[j - 1], ranks[j - 1]] < norm:
            ranks[j] = ranks[j - 1]
            j -= 1
        ranks[j] = i


@compiled()
def _list_valid(valid: NDArray[np.bool_], order: Integers) -> int:
    """List the valid images, then the others; return how many are valid."""
    count = 0
    for i in range(len(valid)):
        if valid[i]:
            order[count] = i
            count += 1
    rest = count
    for i in range(len(valid)):
        if not valid[i]:
            order[rest] = i
            rest += 1
    return count


@compiled()
def _solve_all(
    points: Floats, products: Floats, mean: Floats, squares: Floats, same: float,
    embeddings: Any, valid: NDArray[np.bool_], grams: Floats, orders: Integers,
) -> None:  # fmt: skip
    images = valid.shape[1]
    listed, ranks = np.empty(images, np.int64), np.empty(images, np.int64)
    for neuron in range(len(embeddings)):
        gram, order = grams[neuron], orders[neuron]
        count = _list_valid(valid[neuron], listed)
        raw = _centre(embeddings[neuron], listed, count, points, mean, squares)
        _multiply(points, count, products)
        _sort(ranks, count, products)
        total = 0.0
        for i in range(count):
            total += products[i, i]
        together = total <= same * raw
        for i in range(images):
            order[i] = listed[ranks[i]] if i < count else listed[i]
            for j in range(images):
                gram[i, j] = 0.0
        for i in range(0 if together else count):
            a = ranks[i]
            for j in range(count):
                gram[i, j] = products[a, ranks[j]]
