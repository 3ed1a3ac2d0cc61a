"""polylight beside what people use: image-steps per second, and time to equally strong images."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import (
    Competitor,
    Level,
    Limit,
    Row,
    Timed,
    measure,
    ratios,
    row,
    take_turns,
)
from benchmarks.peer_workers.crew import NAMES, OURS, Workers
from benchmarks.peer_workers.race import race, race_rows
from benchmarks.peer_workers.session import LAYER, MODEL, SIZE

# Makes one image at a time, of which the network sees several crops.
_CROPS = "horama"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way of using a peer.

    Attributes:
        peer: Its worker's name.
        batch: Images at once.
        frozen: Whether the network's weights are frozen first; that of polylight always are.
    """

    peer: str
    batch: int
    frozen: bool = False

    @property
    def kind(self) -> str:
        """Whose and how; the fastest of a kind counts."""
        if self.peer == OURS:
            return NAMES[OURS]
        return f"{NAMES[self.peer]}, {'weights frozen by hand' if self.frozen else 'as shipped'}"

    @property
    def name(self) -> str:
        """The kind and the batch."""
        if self.peer == OURS:
            return f"{self.kind}, pool of {self.batch}"
        if self.peer == _CROPS:
            return f"{self.kind}, {self.batch} crops of one image, all counted"
        return f"{self.kind}, {'one image' if self.batch == 1 else f'batch of {self.batch}'}"

    @property
    def preparation(self) -> dict[str, Any]:
        """What its worker has to know, the channel of each image above all."""
        channels = [0] * self.batch if self.peer == _CROPS else list(range(self.batch))
        return {"channels": channels, "renderer": "equal", "frozen": self.frozen}

    @property
    def steps(self) -> int:
        """Steps of a repeat: one or two seconds on two cores, and enough to outweigh a start."""
        image_steps = 256 if self.peer == OURS else 64
        return max(8, min(32, image_steps // self.batch))


def contenders(device: str) -> list[Contender]:
    """Who takes turns on a device; a GPU takes more images at once."""
    small, large = (4, 16) if device == "cpu" else (16, 64)
    pools = (8, 16, 32) if device == "cpu" else (64, 256)
    return [
        *(Contender(OURS, size) for size in pools),
        *(Contender("dreamlens", size) for size in (1, small, large)),
        Contender("dreamlens", large, frozen=True),
        *(Contender("lucent", size) for size in (1, large)),
        *(Contender("lucent", size, frozen=True) for size in (small, large)),
        *(Contender("torch_dreams", size) for size in (1, large)),
        *(Contender(_CROPS, size) for size in (6, large)),
    ]


# Images at which a peer is tried out before it is timed, where they are not four.
_GATE_BATCH = {OURS: 8, _CROPS: 6}
# How many times as fast the fastest pool has to be as the fastest of a kind.
_LIMITS: dict[str, Limit] = {
    Contender("dreamlens", 1).kind: (">=", 5.0),
    Contender("lucent", 1).kind: (">=", 8.0),
    Contender("lucent", 1, frozen=True).kind: (">=", 3.0),
}


def rises(workers: Workers, contender: Contender, steps: int) -> list[float]:
    """Whether a contender's images do what they are made for.

    Args:
        workers: The processes.
        contender: Who.
        steps: Steps to climb.

    Returns:
        For each image 1 where its channel is more active after all steps than after the first
        ones, by polylight's judgement, else 0.
    """
    worker = workers[contender.peer]
    seen = []
    for count in (1, steps):
        channels = worker.ask("prepare", **contender.preparation)
        worker.ask("climb", steps=count)
        images = worker.ask("images")
        seen.append(np.array(workers[OURS].ask("judge", images=images, channels=channels)))
    return [float(r) for r in seen[1] > seen[0]]


def gates(workers: Workers, entered: Sequence[Contender], device: str, steps: int) -> list[Row]:
    """Check one contender of each peer, and let peers whose gate is red fail.

    Args:
        workers: The processes.
        entered: Who takes part.
        device: Where.
        steps: Steps to climb.

    Returns:
        A gate for each peer.
    """
    rows = []
    for peer in dict.fromkeys(c.peer for c in entered):
        one = Contender(peer, _GATE_BATCH.get(peer, 4))
        found: list[float] = []
        failure = ""
        try:
            found = [float(np.mean(rises(workers, one, steps)))]
        except RuntimeError as error:
            failure = str(error)
        rows.append(
            row(
                found,
                case=f"gate: images that raise their channel, {_place(device)}",
                provider=one.name,
                shape=_shape(one.batch),
                unit="of the images",
                limit=(">=", 1.0),
                failure=failure,
            )
        )
        if not rows[-1].passed:
            workers.failures.setdefault(peer, failure or "its gate is red")
    return rows


def throughput(
    workers: Workers, entered: Sequence[Contender], device: str, shorter: int, repeats: int
) -> list[Row]:
    """Image-steps per second of everybody, and how many times as fast polylight is.

    Args:
        workers: The processes.
        entered: Who takes part.
        device: Where.
        shorter: What everybody's steps are divided by.
        repeats: Turns.

    Returns:
        Rows.
    """

    def climb(contender: Contender) -> float:
        steps = contender.steps // shorter
        return float(workers[contender.peer].ask("climb", steps=steps)["image_steps"])

    def prepare(contender: Contender) -> None:
        workers[contender.peer].ask("prepare", **contender.preparation)

    able = {c: Competitor(partial(climb, c), partial(prepare, c)) for c in entered}
    running = {c.name: able[c] for c in entered if c.peer not in workers.failures}
    timed = take_turns(running, repeats)
    taken = {c: timed.get(c.name, Timed(failure=workers.failures.get(c.peer, ""))) for c in entered}
    case = f"ascent of {MODEL} to {LAYER}, {_place(device)}"
    rows = [
        row(
            t.rates,
            case=case,
            provider=c.name,
            shape=_shape(c.batch),
            unit="image-steps/s",
            failure=t.failure,
        )
        for c, t in taken.items()
    ]
    ours = fastest(taken, NAMES[OURS])
    for kind in dict.fromkeys(c.kind for c in entered if c.peer != OURS):
        theirs = fastest(taken, kind)
        values, failure = ratios(taken[ours], taken[theirs])
        limit = _LIMITS.get(kind)
        level: Level = "headline" if limit else "table"
        rows.append(
            row(
                values,
                case=f"{case}, against {theirs.name}",
                provider=ours.name,
                unit="times as fast",
                limit=limit,
                failure=failure,
                level=level,
            )
        )
    return rows


def fastest(taken: Mapping[Contender, Timed], kind: str) -> Contender:
    """The fastest of a kind by the median, one that failed only where all did."""

    def speed(contender: Contender) -> float:
        timed = taken[contender]
        return -1.0 if timed.failure else float(np.median(timed.rates))

    return max((c for c in taken if c.kind == kind), key=speed)


def _place(device: str) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}[device]


def _shape(batch: int) -> str:
    return f"[{batch}, 3, {SIZE}, {SIZE}]"


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    settings: dict[str, Any] = (
        {"shorter": 4, "repeats": 1, "gate_steps": 16, "channels": [0, 56], "lucent_steps": 24}
        if quick
        else {
            "shorter": 1,
            "repeats": 7,
            "gate_steps": 32,
            "channels": [0, 28, 56, 84],
            "lucent_steps": 512,
        }
    )
    rows: list[Row] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        entered = contenders(device)
        with ExitStack() as stack:
            workers = Workers(device, stack)
            rows += gates(workers, entered, device, settings["gate_steps"])
            rows += throughput(workers, entered, device, settings["shorter"], settings["repeats"])
            channels, steps = settings["channels"], settings["lucent_steps"]
            try:
                found = race(workers, channels, steps, entered[0].batch)
                rows += race_rows(*found, channels, _place(device))
            except RuntimeError as error:
                rows += race_rows({}, [], channels, _place(device), failure=str(error))
    return rows, {**settings, "model": MODEL, "layer": LAYER, "peers": list(NAMES.values())}


if __name__ == "__main__":
    sys.exit(measure("peers", run, sys.argv[1:]))
