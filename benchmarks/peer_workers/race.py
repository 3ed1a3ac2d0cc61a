"""Time until an image excites its channel as much as Lucent's image does."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.common import Limit, Row, row
from benchmarks.peer_workers.crew import NAMES, OURS, Workers
from benchmarks.peer_workers.session import LAYER, MODEL

_STRIDE = 4
_LIMIT: Limit = (">=", 10.0)
# Ways of using Lucent, how the rows call them, and whether there is a target. Not enlarged, an
# image is made at the scale at which the judge sees it, and in less time.
_WAYS = {
    "defaults": ("with its defaults", _LIMIT),
    "to_scale": ("with its defaults, but not enlarged", None),
}


@dataclasses.dataclass(frozen=True)
class Single:
    """One image, made alone: wall-clock seconds, and the activation that it reached."""

    seconds: float
    activation: float


@dataclasses.dataclass(frozen=True)
class Round:
    """A pool of images that climbed until all had stopped.

    Attributes:
        channels: One for each slot.
        seconds: Of a step of the whole pool.
        steps: Steps of each image at each look, [looks][slots].
        activation: Of the clean image, likewise.
    """

    channels: Sequence[int]
    seconds: float
    steps: Sequence[Sequence[int]]
    activation: Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """Images of one channel that became as active as they had to.

    Attributes:
        seconds: For each that did: the seconds of all images of the channel, by how many did;
            infinite where none did.
        count: How many did.
        images: How many there were.
    """

    seconds: float
    count: int
    images: int


def arrivals(rounds: Sequence[Round], channel: int, goal: float) -> Arrivals:
    """Count the time of a channel's images until the first look at which they reach a goal.

    An image takes ``steps * seconds of a step / slots``. One that stops before it gets there has
    taken all of its steps for nothing, and those that do get there pay for it.

    Args:
        rounds: Of pools.
        channel: The channel.
        goal: Activation.

    Returns:
        Arrivals.
    """
    spent, count, images = 0.0, 0, 0
    for one in rounds:
        steps, activation = np.array(one.steps), np.array(one.activation)
        for slot in np.flatnonzero(np.array(one.channels) == channel):
            there = np.flatnonzero(activation[:, slot] >= goal)
            needed = steps[there[0] if there.size else -1, slot]
            spent += float(needed) * one.seconds / len(one.channels)
            count += int(there.size > 0)
            images += 1
    return Arrivals(spent / count if count else math.inf, count, images)


def last_activation(rounds: Sequence[Round], channel: int) -> float:
    """Activation of a channel's images when they had stopped, their median; NaN without images."""
    last = [r.activation[-1][i] for r in rounds for i, c in enumerate(r.channels) if c == channel]
    return float(np.median(last)) if last else math.nan


def race(
    workers: Workers, channels: Sequence[int], steps: int, pool: int
) -> tuple[dict[str, list[Single]], list[Round]]:
    """Let Lucent make an image of each channel, and after each polylight a pool of all of them.

    Args:
        workers: The processes.
        channels: Channels.
        steps: Lucent's.
        pool: Slots of polylight's pool.

    Returns:
        Lucent's images, by the way of using it, in the order of the channels; and polylight's.

    Raises:
        RuntimeError: If one of them fails.
    """
    lucent, ours = workers["lucent"], workers[OURS]
    singles: dict[str, list[Single]] = {way: [] for way in _WAYS}
    rounds: list[Round] = []
    for turn, channel in enumerate(channels):
        for way, found in singles.items():
            lucent.ask("prepare", channels=[channel], renderer=way, frozen=False)
            seconds = lucent.ask("climb", steps=steps)["seconds"]
            image = lucent.ask("images")
            found.append(Single(seconds, *ours.ask("judge", images=image, channels=[channel])))
        slots = [channels[slot % len(channels)] for slot in range(pool)]
        reply = ours.ask("follow", channels=slots, first=turn * pool, stride=_STRIDE)
        rounds.append(Round(slots, **reply))
    return singles, rounds


def race_rows(
    singles: Mapping[str, Sequence[Single]],
    rounds: Sequence[Round],
    channels: Sequence[int],
    place: str,
    failure: str = "",
) -> list[Row]:
    """Sum a race up; each value is that of a channel.

    Args:
        singles: Lucent's images, by the way of using it, in the order of the channels.
        rounds: polylight's images.
        channels: Channels.
        place: Where it was.
        failure: Why there was no race.

    Returns:
        For each way of using Lucent: seconds of an image of both, their ratio, and the share of
        polylight's images that get there; and as details the activations.
    """
    rows = []
    pool = f"{NAMES[OURS]}, pool of {len(rounds[0].channels)}" if rounds else NAMES[OURS]
    for way, (words, limit) in _WAYS.items():
        theirs = singles.get(way, ())
        ours = [
            arrivals(rounds, c, s.activation) for c, s in zip(channels, theirs, strict=not failure)
        ]
        case = f"image of {MODEL} {LAYER} as active as that of Lucent {words}, {place}"
        shape = f"{len(channels)} channels, {sum(a.images for a in ours)} images"
        missing = sum(not a.count for a in ours)
        late = f"no image of {missing} of the channels got there" if missing else ""
        rows += [
            row(
                [s.seconds for s in theirs],
                case=case,
                provider=NAMES["lucent"],
                unit="s/image",
                shape=f"{len(channels)} images",
                failure=failure,
            ),
            row(
                [a.seconds for a in ours],
                case=case,
                provider=pool,
                unit="s/image",
                shape=shape,
                failure=failure or late,
            ),
            row(
                # A channel that none reaches takes for ever: 0.
                [s.seconds / a.seconds for s, a in zip(theirs, ours, strict=True)],
                case=case,
                provider=pool,
                unit="times as fast",
                shape=shape,
                limit=limit,
                failure=failure,
                level="headline" if limit else "table",
            ),
            row(
                [100.0 * a.count / a.images for a in ours],
                case=f"{case}: images that get there",
                provider=pool,
                unit="%",
                shape=shape,
                failure=failure,
            ),
            row(
                [s.activation for s in theirs],
                case=f"{case}: activation",
                provider=NAMES["lucent"],
                unit="activation",
                failure=failure,
                level="detail",
            ),
            row(
                [last_activation(rounds, c) for c in channels],
                case=f"{case}: activation of images that have stopped",
                provider=pool,
                unit="activation",
                failure=failure,
                level="detail",
            ),
        ]
    return rows
