"""Neurons of which it is known how many features they have, made of the channels of a layer.

Composites of m channels have m features at least, as a channel may itself have several: so all of
their channels are scored as well, to be compared with. Controls have no more than a channel has.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from polylight.errors import InputError
from polylight.kernels import philox_uniform, stream_key
from polylight.neurons import Component, Neuron, Operation
from polylight.run.schema import NeuronRow

Kind = Literal["single", "max", "min", "copies", "twins", "logits"]
Half = Literal["tune", "report"]


@dataclass(frozen=True)
class Planted:
    """A neuron and the number of features that it is known to have."""

    neuron: Neuron
    kind: Kind
    """``single``: a channel. ``max``, and ``logits`` where the channels are classes: whatever
    drives any of the components. Controls: ``min``, what drives both of two; ``copies``, the max of
    a
    channel and itself; ``twins``, the max of two channels that do nearly the same."""
    components: tuple[Component, ...]
    m: int
    """Features: the number of components of ``max`` and ``logits``, 1 of all others."""


def half(channel: int) -> Half:
    """Say for what a channel may be used: to choose settings, or to report how well they do.

    Args:
        channel: Number of the channel, >= 0.

    Returns:
        ``tune`` for even channels, ``report`` for odd ones.
    """
    return "report" if channel % 2 else "tune"


def allowed_channels(
    channels: int,
    *,
    exclude: Collection[int] = (),
    only: Literal["all", "tune", "report"] = "all",
) -> list[int]:
    """List the channels of a layer that may be drawn.

    Args:
        channels: Number of channels, >= 0.
        exclude: Channels to leave out, such as dead ones.
        only: Of which :func:`half`.

    Returns:
        Channels in rising order.
    """
    left_out = set(exclude)
    return [c for c in range(channels) if c not in left_out and (only == "all" or half(c) == only)]


def draw_planted(
    layer: str,
    channels: int,
    *,
    seed: int,
    singles: int,
    composites: Mapping[int, int],
    minima: int,
    copies: int,
    twins: Sequence[tuple[int, int]],
    unlike: Sequence[tuple[int, int]] = (),
    screened: Collection[int] = (),
    screened_composites: Mapping[int, int] | None = None,
    exclude: Collection[int] = (),
    only: Literal["all", "tune", "report"] = "all",
    kind: Literal["max", "logits"] = "max",
) -> list[Planted]:
    """Draw planted neurons from a layer.

    Channels are drawn at random; composites, minima and copies are made of these, each of which is
    part of about equally many, and none comes twice. Where composites of screened channels are
    asked for, every other channel is drawn from the screened ones, as long as there are others.
    The channels of given pairs are scored as further singles and are part of nothing else. The
    same arguments draw the same neurons on every machine, and more singles are the same ones and
    some more.

    Args:
        layer: Name of the layer.
        channels: Number of its channels.
        seed: Of the draw.
        singles: Channels to draw, >= 0.
        composites: How many composites of m components, for each m >= 2.
        minima: How many minima of two components.
        copies: How many composites of a channel and itself.
        twins: Pairs of channels that do nearly the same (:func:`similar_and_dissimilar`).
        unlike: Pairs of channels that do not (:func:`similar_and_dissimilar`): further composites.
        screened: Channels that an independent measure found to have one feature.
        screened_composites: How many further composites of m of these, for each m >= 2.
        exclude: Channels that are not to be used.
        only: Which :func:`half` of the channels to use.
        kind: What composites are called; ``logits`` if the layer's channels are classes.

    Returns:
        Singles by channel, composites by m, minima, copies, twins.

    Raises:
        InputError: If the layer has too few channels, too few composites of that kind can be made
            of the singles, or a pair has a channel that may not be used or is used twice.
    """
    allowed = allowed_channels(channels, exclude=exclude, only=only)
    paired = _check_pairs(layer, [*twins, *unlike], allowed, channels)
    free = [c for c in allowed if c not in paired]
    if singles > len(free):
        raise InputError(
            f"{singles} single channels are asked for, but layer '{layer}' has {len(free)} to "
            f"draw from: of its {channels} channels {channels - len(allowed)} are excluded or of "
            f"the other half, and {len(paired)} are in given pairs; ask for fewer singles or take "
            "a wider layer."
        )
    order = _shuffled(free, stream_key(seed, layer, "singles"), 0)
    if screened_composites:
        order = _alternating(order, set(screened))
    drawn = sorted(order[:singles])
    used: Counter[int] = Counter()

    def sets(
        what: str,
        size: int,
        count: int,
        channels: Sequence[int] = drawn,
        taken: Collection[tuple[int, ...]] = (),
    ) -> list[tuple[int, ...]]:
        key = stream_key(seed, layer, what, size)
        name = f"{what} of layer '{layer}'"
        return _balanced_sets(name, channels, size, count, used, taken, key)

    def made(name: Kind, operation: Operation, members: Sequence[int], m: int) -> Planted:
        components = tuple(Component(layer, channel) for channel in members)
        return Planted(Neuron(components, operation), name, components, m)

    planted = [made("single", "", [c], 1) for c in sorted({*drawn, *paired})]
    further = dict(screened_composites or {})
    one_feature = [c for c in drawn if c in set(screened)]
    for m in sorted({*composites, *further}):
        if m < 2:
            raise InputError(
                f"a composite has at least 2 components, not {m}; ask for more singles."
            )
        found = sets("composites", m, composites.get(m, 0))
        found += sets("screened composites", m, further.get(m, 0), one_feature, found)
        planted += [made(kind, "max", members, m) for members in found]
    planted += [made(kind, "max", sorted(pair), 2) for pair in unlike]
    planted += [made("min", "min", members, 1) for members in sets("minima", 2, minima)]
    planted += [made("copies", "max", members * 2, 1) for members in sets("copies", 1, copies)]
    return planted + [made("twins", "max", sorted(pair), 1) for pair in twins]


def pool_images(rows: Sequence[NeuronRow], count: int) -> npt.NDArray[np.int64]:
    """Choose images of several neurons that together are those of a perfect composite.

    A neuron whose images are known to show every feature tells clusters and score from the ascent
    that has to find the features. The first images that count are taken of each row, as nearly
    equally many as can be.

    Args:
        rows: Finished neurons of one feature each, of different channels.
        count: Images in all, at least one of each row.

    Returns:
        int64 [count, 2]: for each image the index of its row, which is the feature that it shows,
        and its index among the images of that row.

    Raises:
        InputError: If a neuron comes twice, ``count`` is less than the number of rows, or a row
            has too few images that count.
    """
    names = [row.neuron for row in rows]
    if not rows or len(set(names)) < len(names) or count < len(rows):
        raise InputError(
            "images are pooled from different neurons, at least one image of each, but "
            f"{count} images of {', '.join(names) or 'no neurons'} are asked for."
        )
    chosen: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        share = count // len(rows) + (index < count % len(rows))
        valid = np.flatnonzero(row.label >= 0)
        if len(valid) < share:
            raise InputError(
                f"{share} images of '{row.neuron}' are needed for a pool of {count}, but only "
                f"{len(valid)} of its {row.num_images} are valid; pool fewer images."
            )
        chosen += [(index, int(image)) for image in valid[:share]]
    return np.array(chosen, dtype=np.int64)


def _check_pairs(
    layer: str, pairs: Sequence[tuple[int, int]], allowed: Sequence[int], channels: int
) -> set[int]:
    """Collect the channels of given pairs, each of which has to be there and used once."""
    may, seen = set(allowed), set[int]()
    for pair in pairs:
        for channel in pair:
            if channel not in may or channel in seen:
                why = "is in two places" if channel in seen else "is none that may be used"
                raise InputError(
                    f"channel {channel} of the pair {pair} {why}; pairs are of different channels "
                    f"of layer '{layer}' (0 to {channels - 1}), none excluded and all of the half "
                    "that is asked for."
                )
            seen.add(channel)
    return seen


def _shuffled(channels: Sequence[int], key: int, draw: int) -> list[int]:
    """Bring channels into a random order, a pure function of key and draw."""
    if not channels:
        return []
    # One number more than there are channels costs nothing, and a longer list keeps its start.
    numbers = philox_uniform(torch.tensor([key]), torch.tensor([draw]), max(channels) + 1)[0]
    return sorted(channels, key=numbers.tolist().__getitem__)


def _alternating(order: Sequence[int], screened: Collection[int]) -> list[int]:
    """Take a screened channel and another one by turns, as long as there are both."""
    first = [c for c in order if c in screened]
    second = [c for c in order if c not in screened]
    turns = min(len(first), len(second))
    mixed = [c for pair in zip(first, second, strict=False) for c in pair]
    return mixed + first[turns:] + second[turns:]


def _balanced_sets(
    what: str,
    channels: Sequence[int],
    size: int,
    count: int,
    used: Counter[int],
    taken: Collection[tuple[int, ...]],
    key: int,
) -> list[tuple[int, ...]]:
    """Draw other sets of channels than are taken, the least used first; ``used`` is counted on."""
    before = {members for members in taken if {*members} <= {*channels}}
    possible = comb(len(channels), size) - len(before)
    if count > possible:
        raise InputError(
            f"{count} {what} are asked for with {size} channels each, but {len(channels)} single "
            f"channels give only {possible} that are not yet drawn; ask for fewer, or for more "
            "singles."
        )
    here: Counter[int] = Counter()
    drawn = []
    for draw in range(count):
        order = sorted(_shuffled(channels, key, draw), key=lambda c: (used[c], here[c]))
        sets = (tuple(sorted(members)) for members in combinations(order, size))
        chosen = next(members for members in sets if members not in before)
        before.add(chosen)
        used.update(chosen)
        here.update(chosen)
        drawn.append(chosen)
    return drawn
