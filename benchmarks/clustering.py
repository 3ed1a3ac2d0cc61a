"""Time to cluster the images of a neuron, beside loops over scikit-learn and faiss."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.common import (
    Competitor,
    Level,
    Limit,
    Row,
    Timed,
    gate,
    measure,
    ratios,
    row,
    take_turns,
)
from polylight.clustering import cluster
from polylight.kernels import Kernels

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Inertia = npt.NDArray[np.float64]
# A neuron's images [N, D], k_max, restarts and a seed to its partitions, int64 [k_max, N].
Loop = Callable[[Floats, int, int, int], Labels]

# So many starts of ours are on average as good as eight of the libraries', which do not move
# single points.
_FEWER_STARTS = 3
_OURS, _FEWER = "polylight gram", f"polylight gram, {_FEWER_STARTS} starts"
_TWIN = "polylight gram, torch twin"
_SKLEARN, _FAISS = "sklearn loop", "faiss loop"


def embeddings(neurons: int, images: int, dims: int) -> Tensor:
    """Unit vectors around one to eight modes a neuron, float32 [neurons, images, dims]."""
    generator = torch.Generator().manual_seed(dims)
    modes = torch.randn(neurons, 8, dims, generator=generator)
    mode = torch.arange(images) % (1 + torch.arange(neurons)[:, None] % 8)
    noise = torch.randn(neurons, images, dims, generator=generator)
    points = modes.gather(1, mode[..., None].expand(-1, -1, dims)) + 0.5 * noise
    return torch.nn.functional.normalize(points, dim=-1)


def by_sklearn(points: Floats, k_max: int, restarts: int, seed: int) -> Labels:
    """Labels for K = 1..k_max by scikit-learn, its defaults otherwise: int64 [k_max, N]."""
    from sklearn.cluster import KMeans

    found = [
        KMeans(k, n_init=restarts, random_state=seed).fit(points).labels_
        for k in range(1, k_max + 1)
    ]
    return np.stack(found).astype(np.int64)


def by_faiss(points: Floats, k_max: int, restarts: int, seed: int) -> Labels:
    """Labels for K = 1..k_max by faiss, its defaults otherwise: int64 [k_max, N]."""
    import faiss

    found = []
    for k in range(1, k_max + 1):
        means = faiss.Kmeans(
            points.shape[1],
            k,
            nredo=restarts,
            seed=seed,
            # Better and no slower than its random starts.
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            # It warns below 39 points a cluster unless told that this is meant.
            min_points_per_centroid=1,
        )
        means.train(points)
        found.append(means.index.search(points, 1)[1][:, 0])
    return np.stack(found)


def inertia(points: Floats, labels: Labels) -> Inertia:
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


@dataclasses.dataclass(frozen=True)
class Entrant:
    """One way to cluster: the first ``count`` neurons, on so many threads.

    Attributes:
        solve: Returns the inertia for each K, or the labels that it is worked out from.
    """

    solve: Callable[[Tensor], Inertia | list[Labels]]
    count: int
    threads: int

    def turn(self, points: Tensor) -> Competitor:
        """Take part in the turns."""

        def run() -> float:
            self.solve(points[: self.count])
            return self.count

        return Competitor(run, self.prepare)

    def prepare(self) -> None:
        """Set the threads of all libraries of the process."""
        threadpool_limits(limits=self.threads)
        torch.set_num_threads(self.threads)

    def inertia(self, points: Tensor) -> Inertia:
        """Solve once and tell how well: float64 [count, K]."""
        self.prepare()
        found = self.solve(points[: self.count])
        if not isinstance(found, list):
            return found
        rows = zip(points[: self.count].numpy(), found, strict=True)
        return np.stack([inertia(some, labels) for some, labels in rows])


def by_gram(points: Tensor, k_max: int, restarts: int, kernels: Kernels = "auto") -> Inertia:
    """Inertia for K = 1..k_max of all neurons by polylight, which also chooses K."""
    neurons, images, _ = points.shape
    valid = torch.ones(neurons, images, dtype=torch.bool)
    keys = torch.arange(neurons)
    found = cluster(points, valid=valid, keys=keys, k_max=k_max, restarts=restarts, kernels=kernels)
    return found.inertia.numpy()


def entrants(neurons: int, k_max: int, restarts: int, looped: int) -> dict[str, Entrant]:
    """All that are compared, by name.

    Neurons can be dealt out to processes whoever clusters them, so one thread each is the fair
    measure. All threads of the machine are what one gets unasked.
    """
    cores = torch.get_num_threads()

    def each(solve: Loop, points: Tensor) -> list[Labels]:
        return [solve(some, k_max, restarts, seed) for seed, some in enumerate(points.numpy())]

    def gram(starts: int, kernels: Kernels = "auto") -> Callable[[Tensor], Inertia]:
        return lambda points: by_gram(points, k_max, starts, kernels)

    found = {
        _OURS: Entrant(gram(restarts), neurons, 1),
        _FEWER: Entrant(gram(_FEWER_STARTS), neurons, 1),
        _TWIN: Entrant(gram(restarts, "torch"), 4 * looped, 1),
        _SKLEARN: Entrant(partial(each, by_sklearn), looped, 1),
        _FAISS: Entrant(partial(each, by_faiss), 4 * looped, 1),
    }
    if cores > 1:
        for name in (_OURS, _SKLEARN, _FAISS):
            found[f"{name}, {cores} threads"] = dataclasses.replace(found[name], threads=cores)
    return found


def compare(
    neurons: int, images: int, dims: int, k_max: int, restarts: int, looped: int, repeats: int
) -> list[Row]:
    """Measure ours on all neurons at once, and the loops on some of the same neurons.

    Args:
        neurons: Neurons that ours clusters at once, >= 4 ``looped``.
        images: Images of a neuron.
        dims: Dimensions of their embeddings.
        k_max: Largest number of clusters.
        restarts: Starts for each number.
        looped: Neurons of a repeat of scikit-learn; faiss and our twin in plain torch take four
            times as many.
        repeats: Number of repeats.

    Returns:
        Gates, times for each and our gain over the loops.
    """
    points = embeddings(neurons, images, dims)
    cores = torch.get_num_threads()
    field = entrants(neurons, k_max, restarts, looped)
    quality = {n: field[n].inertia(points) for n in (_OURS, _FEWER, _SKLEARN, _FAISS)}
    rows = _inertia_rows(quality, f"{images}, {dims}]")
    gates = [r for r in rows if r.case.startswith("gate:")]
    timed = take_turns({n: e.turn(points) for n, e in field.items()}, repeats, gates=gates)
    threadpool_limits(limits=cores)
    torch.set_num_threads(cores)
    case = f"k-means, K = 1..{k_max}, {restarts} starts"
    return rows + _time_rows(
        case, timed, field, f"{images}, {dims}]", level="headline" if dims == 16 else "table"
    )


def _inertia_rows(quality: dict[str, Inertia], shape: str) -> list[Row]:
    """Our inertia against that of the loops, over the neurons that they clustered and all K."""
    rows = []
    for loop in (_SKLEARN, _FAISS):
        size = f"[{len(quality[loop])}, {shape}"
        for ours in (_OURS, _FEWER):
            excess = (quality[ours][: len(quality[loop])] / quality[loop] - 1.0).ravel() * 100.0
            what = f"inertia of {ours} above that of {loop}"
            if ours == _OURS:
                rows.append(gate(f"{what}, mean", excess.mean(), ("<=", 1e-4), "%", size))
            else:
                rows.append(row([excess.mean()], case=f"{what}, mean", unit="%", shape=size))
            rows.append(row([excess.max()], case=f"{what}, worst", unit="%", shape=size))
    return rows


def _time_rows(
    case: str, timed: dict[str, Timed], field: dict[str, Entrant], shape: str, level: Level
) -> list[Row]:
    rows = [
        row(
            [1e3 / rate for rate in timed[name].rates],
            case=case,
            provider=name,
            shape=f"[{entrant.count}, {shape}",
            unit="ms/neuron",
            failure=timed[name].failure,
            level=level if entrant.threads == 1 else "table",
        )
        for name, entrant in field.items()
    ]
    for name, entrant in field.items():
        if not name.startswith("polylight"):
            continue
        suffix = f", {entrant.threads} threads" if entrant.threads > 1 else ""
        for loop, least in ((_SKLEARN, 100.0), (_FAISS, 10.0)):
            gains, failure = ratios(timed[name], timed[loop + suffix])
            rows.append(
                row(
                    gains,
                    case=case,
                    provider=name,
                    shape=f"[{entrant.count}, {shape}",
                    unit=f"times as fast as {loop}{suffix}",
                    limit=(">=", least) if name == _OURS else None,
                    failure=failure,
                    level=level if entrant.threads == 1 else "table",
                )
            )
    return rows


def grow(
    sizes: Sequence[int], images: int, dims: int, k_max: int, restarts: int, repeats: int
) -> list[Row]:
    """Measure ours on one thread for one number of neurons after the other."""
    points = embeddings(max(sizes), images, dims)
    threads = torch.get_num_threads()
    field = {
        str(size): Entrant(partial(by_gram, k_max=k_max, restarts=restarts), size, 1)
        for size in sizes
    }
    timed = take_turns({name: one.turn(points) for name, one in field.items()}, repeats)
    threadpool_limits(limits=threads)
    torch.set_num_threads(threads)
    return [
        row(
            [1e3 / rate for rate in timed[name].rates],
            case=f"k-means as neurons grow, K = 1..{k_max}, {restarts} starts",
            provider=_OURS,
            shape=f"[{name}, {images}, {dims}]",
            unit="ms/neuron",
            failure=timed[name].failure,
        )
        for name in field
    ]


def first_use() -> list[Row]:
    """Seconds of the first call in a process, with nothing compiled yet and with all of it kept."""
    code = (
        "import time, torch; from polylight.clustering import cluster; "
        "valid = torch.ones(1, 8, dtype=torch.bool); began = time.perf_counter(); "
        "cluster(torch.eye(8)[None], valid=valid, keys=torch.zeros(1, dtype=torch.int64)); "
        "print(time.perf_counter() - began)"
    )
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        limits: dict[str, Limit] = {"compiling": ("<=", 10.0), "compiled before": ("<=", 1.0)}
        for what, limit in limits.items():
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=False,
            )
            rows.append(
                row(
                    [float(done.stdout)] if done.returncode == 0 else [],
                    case=f"k-means, first call of a process, {what}",
                    provider=_OURS,
                    unit="s",
                    limit=limit,
                    failure=done.stderr.strip().rpartition("\n")[2] if done.returncode else "",
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
    sizes = (16, 64) if quick else (16, 64, 256, 1024, 4096)
    rows += grow(sizes, config["images"], 16, config["k_max"], config["restarts"], repeats)
    return rows + first_use(), {**config, "dims": [16, 512], "grown": list(sizes)}


if __name__ == "__main__":
    sys.exit(measure("clustering", run, sys.argv[1:]))
