"""Time to cluster the images of a neuron, beside loops over scikit-learn and faiss."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.common import Competitor, Row, Timed, gate, measure, ratios, row, take_turns
from polylight.clustering import Clusters, cluster

Floats = npt.NDArray[np.float32]
# All partitions of a neuron's images into 1..K clusters: int64 [K, N].
Loop = Callable[[Floats, int, int, int], npt.NDArray[np.int64]]


def embeddings(neurons: int, images: int, dims: int) -> Tensor:
    """Unit vectors around one to eight modes a neuron, float32 [neurons, images, dims]."""
    generator = torch.Generator().manual_seed(dims)
    modes = torch.randn(neurons, 8, dims, generator=generator)
    mode = torch.arange(images) % (1 + torch.arange(neurons)[:, None] % 8)
    noise = torch.randn(neurons, images, dims, generator=generator)
    points = modes.gather(1, mode[..., None].expand(-1, -1, dims)) + 0.5 * noise
    return torch.nn.functional.normalize(points, dim=-1)


def by_sklearn(points: Floats, k_max: int, restarts: int, seed: int) -> npt.NDArray[np.int64]:
    """Labels for K = 1..k_max by scikit-learn, its defaults otherwise: int64 [k_max, N]."""
    from sklearn.cluster import KMeans

    found = [
        KMeans(k, n_init=restarts, random_state=seed).fit(points).labels_
        for k in range(1, k_max + 1)
    ]
    return np.stack(found).astype(np.int64)


def by_faiss(points: Floats, k_max: int, restarts: int, seed: int) -> npt.NDArray[np.int64]:
    """Labels for K = 1..k_max by faiss, its defaults otherwise: int64 [k_max, N]."""
    import faiss

    found = []
    for k in range(1, k_max + 1):
        # faiss warns below 39 points a cluster unless told that this is meant.
        means = faiss.Kmeans(
            points.shape[1], k, nredo=restarts, seed=seed, min_points_per_centroid=1
        )
        means.train(points)
        found.append(means.index.search(points, 1)[1][:, 0])
    return np.stack(found)


def inertia(points: Floats, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Sum of squared distances to the cluster means of each partition.

    Args:
        points: [N, D].
        labels: [P, N], of P partitions.

    Returns:
        [P], in float64 whoever found the partition.
    """
    exact = points.astype(np.float64)
    within = [
        sum(
            ((part - part.mean(0)) ** 2).sum()
            for part in (exact[row_labels == c] for c in np.unique(row_labels))
        )
        for row_labels in labels
    ]
    return np.array(within)


def compare(
    neurons: int, images: int, dims: int, k_max: int, restarts: int, looped: int, repeats: int
) -> list[Row]:
    """Measure ours on all neurons, and the loops on some of the same, one thread each.

    Args:
        neurons: Neurons that ours clusters at once, >= 4 ``looped``.
        images: Images of a neuron.
        dims: Dimensions of their embeddings.
        k_max: Largest number of clusters.
        restarts: Starts for each number.
        looped: Neurons of a repeat of scikit-learn; faiss takes four times as many.
        repeats: Number of repeats.

    Returns:
        Gates, times for each and our gain over the loops.
    """
    points = embeddings(neurons, images, dims)
    votes, keys = torch.ones(neurons, images, dtype=torch.bool), torch.arange(neurons)
    arrays = list(points.numpy())
    cores = torch.get_num_threads()
    ours: list[Clusters] = []
    theirs: dict[str, npt.NDArray[np.float64]] = {}

    def gram(threads: int) -> float:
        torch.set_num_threads(threads)
        found = cluster(points, votes=votes, keys=keys, k_max=k_max, restarts=restarts)
        torch.set_num_threads(1)
        ours[:] = [found]
        return neurons

    def loop(name: str, solve: Loop, count: int) -> float:
        found = [solve(x, k_max, restarts, seed) for seed, x in enumerate(arrays[:count])]
        theirs.setdefault(
            name,
            np.stack([inertia(x, y) for x, y in zip(arrays[:count], found, strict=True)]),
        )
        return count

    # Neurons can be dealt out to processes by any of them, so a core is the measure of all.
    names = {"polylight gram": neurons, "sklearn loop": looped, "faiss loop": 4 * looped}
    competitors = {
        "polylight gram": Competitor(lambda: gram(1)),
        "sklearn loop": Competitor(lambda: loop("sklearn loop", by_sklearn, looped)),
        "faiss loop": Competitor(lambda: loop("faiss loop", by_faiss, 4 * looped)),
    }
    if cores > 1:
        names[f"polylight gram, {cores} threads"] = neurons
        competitors[f"polylight gram, {cores} threads"] = Competitor(lambda: gram(cores))
    with threadpool_limits(limits=1):
        # Results do not change from run to run, so the gates are looked at after one of each.
        gram(1)
        loop("sklearn loop", by_sklearn, looped)
        loop("faiss loop", by_faiss, 4 * looped)
        rows = _gates(ours[0].inertia.numpy(), theirs, f"[{images}, {dims}]")
        timed = take_turns(competitors, repeats, gates=[r for r in rows if r.target])
    torch.set_num_threads(cores)
    case = f"k-means, K = 1..{k_max}, {restarts} starts"
    return rows + _rows(case, timed, names, f"{images}, {dims}]")


def _gates(
    ours: npt.NDArray[np.float64], theirs: dict[str, npt.NDArray[np.float64]], shape: str
) -> list[Row]:
    """Our inertia against theirs, over the neurons that they clustered and all K."""
    rows = []
    for name, other in theirs.items():
        excess = (ours[: len(other)] / other - 1.0).ravel()
        size = f"{len(other)} x {shape}"
        what = f"inertia above that of the {name}"
        rows.append(gate(f"{what}, mean over neurons and K", excess.mean(), ("<=", 1e-6), "", size))
        rows.append(row([excess.max()], case=f"{what}, worst", unit="", shape=size))
    return rows


def _rows(case: str, timed: dict[str, Timed], names: dict[str, int], shape: str) -> list[Row]:
    rows = [
        row(
            [1e3 / rate for rate in timed[name].rates],
            case=case,
            provider=name,
            shape=f"[{count}, {shape}",
            unit="ms/neuron",
            failure=timed[name].failure,
            headline=True,
        )
        for name, count in names.items()
    ]
    for name, least in (("sklearn loop", 100), ("faiss loop", 10)):
        gains, failure = ratios(timed["polylight gram"], timed[name])
        rows.append(
            row(
                gains,
                case=case,
                provider="polylight gram",
                shape=f"[{names['polylight gram']}, {shape}",
                unit=f"times faster than the {name}",
                limit=(">=", least),
                failure=failure,
                headline=True,
            )
        )
    return rows


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    neurons, looped, repeats = (32, 2, 2) if quick else (1024, 16, 5)
    config = {
        "neurons": neurons,
        "images": 64,
        "k_max": 8,
        "restarts": 8,
        "looped": looped,
        "repeats": repeats,
    }
    rows = [r for dims in (16, 512) for r in compare(dims=dims, **config)]
    return rows, {**config, "dims": [16, 512], "threads": "1 unless stated"}


if __name__ == "__main__":
    sys.exit(measure("clustering", run, sys.argv[1:]))
