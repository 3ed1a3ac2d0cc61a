"""Planted neurons: composites of channels, of which it is known how many features they have.

A composite of m channels has m features at least, as a channel may itself have several: so all of
its channels are scored as well, to be compared with. Controls have no more than a channel has.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from math import comb
from typing import Literal

import torch

from polylight.errors import InputError
from polylight.kernels import philox_uniform, stream_key
from polylight.neurons import Component, Neuron, Operation

Kind = Literal["single", "max", "min", "copies", "near_duplicates", "logits"]
Split = Literal["all", "tune", "test"]


@dataclass(frozen=True)
class PlantedNeuron:
    """A neuron and the number of features that it is known to have."""

    neuron: Neuron
    kind: Kind
    """``single``: a channel. ``max``, and ``logits`` where the channels are classes: whatever
    drives any of the components. Controls: ``min``, what drives both of two; ``copies``, the max
    of a channel and itself; ``near_duplicates``, the max of two channels that do nearly the
    same."""
    m: int
    """Features: the number of components of ``max`` and ``logits``, 1 of all others."""

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that it is made of."""
        return tuple(component.channel for component in self.neuron.components)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many neurons of each kind a layer gives.

    Attributes:
        singles: Channels, of which all but the pairs are made.
        composites: For each number of components, how many maxima of so many channels.
        screened: For each number of components, how many further maxima of so many channels that
            photos show to be among the more monosemantic half of their layer, or of classes. Every
            other single is then such a channel. Without photos there are none but of classes.
        minima: Minima of two channels, which have one feature: a control.
        copies: Maxima of a channel and itself: a control.
        near_duplicates: Pairs of the most similar channels, scored as single neurons, too. Those
            that correlate by less than .9 are no control: they count as composites of two.
        dissimilar: Pairs of the least similar channels, likewise: composites of two.
    """

    singles: int = 12
    composites: dict[int, int] = field(default_factory=lambda: {2: 6, 3: 4, 4: 3})
    screened: dict[int, int] = field(default_factory=dict)
    minima: int = 3
    copies: int = 3
    near_duplicates: int = 2
    dissimilar: int = 2

    def __post_init__(self) -> None:
        by_components = ("composites", "screened")
        counts = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in by_components
        }
        for name in by_components:
            counts |= {f"{name} of {m}": count for m, count in getattr(self, name).items()}
        for name, count in counts.items():
            if count < 0:
                raise InputError(f"sizes cannot be negative, but {name} is {count}.")


def allowed_channels(
    channels: int, *, exclude: Collection[int] = (), split: Split = "all"
) -> list[int]:
    """List the channels of a layer that may be drawn.

    Args:
        channels: Number of channels, >= 0.
        exclude: Channels to leave out, such as dead ones.
        split: ``tune`` for even channels, by which settings are chosen; ``test`` for odd ones, by
            which it is reported how well they do; ``all``.

    Returns:
        Channels in rising order.
    """
    left_out, start = set(exclude), int(split == "test")
    return [c for c in range(start, channels, 1 if split == "all" else 2) if c not in left_out]


def plant_neurons(
    layer: str,
    channels: int,
    sizes: Sizes,
    *,
    seed: int,
    near_duplicates: Sequence[tuple[int, int]] = (),
    dissimilar: Sequence[tuple[int, int]] = (),
    screened: Collection[int] | None = None,
    exclude: Collection[int] = (),
    split: Split = "all",
    kind: Literal["max", "logits"] = "max",
) -> list[PlantedNeuron]:
    """Make planted neurons of channels of a layer.

    Channels are drawn at random; composites, minima and copies are made of these, each of which is
    part of about equally many, and none comes twice. Where composites of screened channels are
    asked for, every other channel is drawn from the screened ones, as long as there are others.
    The channels of given pairs are scored as further singles and are part of nothing else. The
    same arguments give the same neurons on every machine, and more singles are the same ones and
    some more.

    Args:
        layer: Name of the layer.
        channels: Number of its channels.
        sizes: How many neurons of each kind; pairs are as many as are given.
        seed: Of the random choice.
        near_duplicates: Pairs of channels that do nearly the same.
        dissimilar: Pairs of channels that do not: further composites.
        screened: Channels that an independent measure found to have one feature; None where
            nothing was measured, and then there are no composites of them.
        exclude: Channels that are not to be used.
        split: Which channels to use (:func:`allowed_channels`).
        kind: What composites are called; ``logits`` if the layer's channels are classes.

    Returns:
        Singles by channel, composites by m, minima, copies, near-duplicates.

    Raises:
        InputError: If the layer has too few channels, too few composites of that kind can be made
            of the singles, or a pair has a channel that may not be used or is used twice.
    """
    allowed = allowed_channels(channels, exclude=exclude, split=split)
    paired = _check_pairs(layer, [*near_duplicates, *dissimilar], allowed, channels)
    free = [c for c in allowed if c not in paired]
    if sizes.singles > len(free):
        raise InputError(
            f"{sizes.singles} single channels are asked for, but layer '{layer}' has {len(free)} "
            f"to draw from: of its {channels} channels {channels - len(allowed)} are excluded or "
            f"of the other split, and {len(paired)} are in given pairs; ask for fewer singles or "
            "take a wider layer."
        )
    further = {} if screened is None else sizes.screened
    order = _shuffled(free, stream_key(seed, layer, "singles"), 0)
    if further:
        order = _alternating(order, set(screened or ()))
    singles = sorted(order[: sizes.singles])
    of_one_feature = [c for c in singles if c in set(screened or ())]
    used: Counter[int] = Counter()

    def sets(
        what: str,
        size: int,
        count: int,
        channels: Sequence[int] = singles,
        taken: Collection[tuple[int, ...]] = (),
    ) -> list[tuple[int, ...]]:
        # The name is part of the random stream: another one would plant other neurons.
        key = stream_key(seed, layer, what, size)
        name = f"{what} of layer '{layer}'"
        return _balanced_sets(name, channels, size, count, used, taken, key)

    def planted(
        kind: Kind, operation: Operation, members: Sequence[int], m: int = 1
    ) -> PlantedNeuron:
        components = tuple(Component(layer, channel) for channel in members)
        return PlantedNeuron(Neuron(components, operation), kind, m)

    neurons = [planted("single", "", [c]) for c in sorted({*singles, *paired})]
    for m in sorted({*sizes.composites, *further}):
        if m < 2:
            raise InputError(
                f"a composite has at least 2 components, not {m}; ask for more singles."
            )
        found = sets("composites", m, sizes.composites.get(m, 0))
        found += sets("screened composites", m, further.get(m, 0), of_one_feature, found)
        neurons += [planted(kind, "max", members, m) for members in found]
    neurons += [planted(kind, "max", sorted(pair), 2) for pair in dissimilar]
    neurons += [planted("min", "min", members) for members in sets("minima", 2, sizes.minima)]
    neurons += [planted("copies", "max", c * 2) for c in sets("copies", 1, sizes.copies)]
    return neurons + [planted("near_duplicates", "max", sorted(pair)) for pair in near_duplicates]


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
                    f"of layer '{layer}' (0 to {channels - 1}), none excluded and all of the split "
                    "that is asked for."
                )
            seen.add(channel)
    return seen


def _shuffled(channels: Sequence[int], key: int, index: int) -> list[int]:
    """Bring channels into a random order, a pure function of key and index."""
    if not channels:
        return []
    # One number more than there are channels costs nothing, and a longer list keeps its start.
    numbers = philox_uniform(torch.tensor([key]), torch.tensor([index]), max(channels) + 1)[0]
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
    """Draw sets of channels that are not taken, of the least used first; ``used`` is added to."""
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
    for index in range(count):
        order = sorted(_shuffled(channels, key, index), key=lambda c: (used[c], here[c]))
        sets = (tuple(sorted(members)) for members in combinations(order, size))
        chosen = next(members for members in sets if members not in before)
        before.add(chosen)
        used.update(chosen)
        here.update(chosen)
        drawn.append(chosen)
    return drawn
