import dataclasses

import pytest
import torch
from tiny_runs import ASCENT, engine

from polylight.ascent.augmentation import identity
from polylight.ascent.objective import Scale, make_targets
from polylight.ascent.scheduler import Rounds
from polylight.ascent.settings import Ascent, Slot
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.neurons import Component, parse_neurons

ROUNDS = Rounds(round_size=3, min_images=3, max_images=9)


class Climb:
    """A pool whose slots are filled by hand; notes what every step of it measures."""

    def __init__(self, expressions, scales=None, **settings):
        made = engine(expressions, rounds=ROUNDS, **settings)
        self.pool, self.optimizer, self.scales = made.pool, made.optimizer, scales or {}
        self.values, self.features, self.repulsions = [], [], []
        measure, repulsion = self.pool._measure, self.pool._repulsion

        def note_value(value):
            self.values.append(value.clone())
            measure(value)

        def note_repulsion(features, layers):
            self.features.append(features.detach().clone())
            found = repulsion(features, layers)
            self.repulsions.append(found.detach().clone())
            return found

        self.pool._measure, self.pool._repulsion = note_value, note_repulsion

    def targets(self, texts):
        subject = self.pool.subject
        neurons = [n for text in texts for n in parse_neurons([text], subject.shapes)]
        return make_targets(neurons, subject.shapes, self.scales, self.pool.num_components)

    def enter(self, slots, texts, **fields):
        """Let images of neurons enter; fields of :class:`Slot` are one value, or one a slot."""
        ascent = self.pool.ascent
        entries = []
        for i, text in enumerate(texts):
            settings = {
                "key": stream_key(0, text),
                "active_index": slots[i],
                "max_steps": ascent.max_steps,
                "explore_steps": ascent.explore_steps,
            }
            own = {k: v[i] if isinstance(v, list) else v for k, v in fields.items()}
            entries.append(Slot(**(settings | own)))
        self.optimizer.reset(self.pool.refill(slots, entries, self.targets(texts)))

    def steps(self, count):
        for _ in range(count):
            self.pool.climb()
            self.optimizer.step()


def stops_at(values, ascent):
    """When an image stops, from the values that it was seen to have: the rule, in plain words."""
    smooth = best = start = values[0]
    stalled = 0
    for step, value in enumerate(values):
        if step:
            smooth = 0.9 * smooth + 0.1 * value
        rise = step in (0, ascent.explore_steps)
        rise = rise or smooth > best + ascent.tolerance * abs(best - start)
        best, stalled = (smooth, 0) if rise else (best, stalled + 1)
        done = step + 1
        ready = done >= ascent.explore_steps + ascent.patience and stalled >= ascent.patience
        if ready and ascent.patience and done % ascent.stride == 0:
            return done
        if done == ascent.max_steps:
            return done
    return None


def test_an_image_stops_when_it_has_converged_while_others_go_on():
    ascent = Ascent(max_steps=46, explore=0.2, tolerance=0.08, patience=3, stride=4)
    climb = Climb(["act3:*", "fc:*"], ascent=ascent)
    texts = [*(f"act3:{c}" for c in range(5)), "fc:0", "fc:1", "fc:2"]
    climb.enter(list(range(8)), texts)
    climb.steps(46)
    pool = climb.pool
    assert not pool.running.any()
    values = torch.stack(climb.values).double()
    expected = [stops_at(values[:, slot].tolist(), ascent) for slot in range(8)]
    assert pool.steps.tolist() == expected
    early = [s for s in expected if s < 46]
    assert len(set(early)) > 1
    assert 46 in expected
    assert all(s % 4 == 0 for s in early)


def test_a_stopped_image_does_not_move():
    ascent = Ascent(max_steps=12, patience=0)
    climb = Climb(["act3:0"], ascent=ascent, pool_size=3)
    climb.enter([0, 1], ["act3:0"] * 2, max_steps=[12, 5])
    climb.steps(5)
    before = climb.pool.latents.detach().clone()
    climb.steps(7)
    assert climb.pool.steps.tolist() == [12, 5, 0]
    moved = (climb.pool.latents != before).flatten(1).any(1)
    assert moved.tolist() == [True, False, False]


def test_without_patience_every_image_takes_all_its_steps():
    ascent = Ascent(max_steps=30, tolerance=1e6, patience=0, stride=4)
    climb = Climb(["act3:*"], ascent=ascent)
    climb.enter([0, 1, 2], ["act3:0", "act3:1", "act3:2"], max_steps=[30, 30, 17])
    climb.steps(34)
    assert climb.pool.steps.tolist() == [30, 30, 17, 0, 0, 0, 0, 0]


def test_images_climb():
    climb = Climb(["act3:*"], ascent=Ascent(max_steps=40, patience=0))
    climb.enter(list(range(8)), [f"act3:{c}" for c in range(8)])
    climb.steps(40)
    assert (climb.values[-1] > climb.values[0]).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "pool_size"), [(32, 8), (30, 5), (26, 36)])
def test_what_an_image_becomes_does_not_depend_on_its_slot(size, pool_size, threads):
    """One image in every slot, in the last ones of a vector too: every bit of it is the same."""
    torch.set_num_threads(threads)
    climb = Climb(["act3:*"], size=size, pool_size=pool_size)
    climb.enter(list(range(pool_size)), ["act3:5"] * pool_size)
    for _ in range(3):
        climb.steps(3)
        assert (climb.pool.latents == climb.pool.latents[:1]).all()
        assert (climb.values[-1] == climb.values[-1][0]).all()


def test_the_maps_of_a_slot_follow_its_key_and_step():
    climb = Climb(["act3:*"], pool_size=4)
    climb.enter([1], ["act3:0"])
    climb.steps(3)
    climb.enter([0, 2], ["act3:1", "act3:2"])
    pool = climb.pool
    drawn = pool.draw(5)
    for later in range(5):
        alone = pool.augmentation.maps(pool.key, pool.steps + later, 32)
        assert torch.equal(drawn[later], alone)
    assert pool.steps.tolist() == [0, 3, 0, 0]


def test_a_refilled_slot_starts_from_nothing_but_its_key():
    climb = Climb(["act3:*"], pool_size=3, ascent=dataclasses.replace(ASCENT, patience=0))
    climb.enter([0, 1, 2], ["act3:0", "act3:1", "act3:2"], max_steps=[20, 6, 20])
    climb.steps(8)
    climb.enter([1], ["act3:7"])
    drawn = climb.pool.parametrization.initial_latents(climb.pool.key[1:2])
    assert torch.equal(climb.pool.latents[1:2].detach(), drawn)
    climb.steps(10)

    fresh = Climb(["act3:*"], pool_size=3, ascent=dataclasses.replace(ASCENT, patience=0))
    fresh.enter([1], ["act3:7"])
    fresh.steps(10)
    assert torch.equal(climb.pool.latents[1], fresh.pool.latents[1])


def test_a_non_finite_image_stops_at_once_and_disturbs_nobody():
    def climb_with(texts, spoil=None):
        climb = Climb(
            ["act:*"], subject="tiny:dying", ascent=dataclasses.replace(ASCENT, patience=0)
        )
        climb.enter(list(range(8)), texts)
        climb.steps(6)
        if spoil is not None:
            climb.pool.target_channel[spoil] = 4  # non-finite for any image
        climb.steps(14)
        return climb.pool

    quiet = climb_with(["act:3"] * 8)
    loud = climb_with(["act:3", "act:3", "act:4", *["act:3"] * 5], spoil=6)
    assert loud.broken.tolist() == [False, False, True, False, False, False, True, False]
    assert loud.steps.tolist() == [20, 20, 1, 20, 20, 20, 7, 20]
    assert not loud.running.any()
    assert loud.latents.isfinite().all()
    drawn = loud.parametrization.initial_latents(loud.key[2:3])
    assert torch.equal(loud.latents[2:3].detach(), drawn)
    others = [0, 1, 3, 4, 5, 7]
    assert torch.equal(loud.latents[others], quiet.latents[others])


def optima_of(climb, active_index, neuron, count):
    """Let some random images be finished ones of a neuron; their features."""
    pool = climb.pool
    torch.manual_seed(active_index)
    images = torch.rand(count, 3, 32, 32)
    targets = climb.targets([neuron] * count)
    still = identity(count, images.device)
    layers = set(targets.layer.flatten().tolist())
    readings = pool.see(images, still, targets, layers)
    alive = torch.ones(count, dtype=torch.bool)
    pool.previous_optima.remember(active_index, readings.features, targets, alive, layers)
    return readings.features


def hand_repulsion(climb, step, slot, finished):
    """The formula of the repulsion in float64, for an image with the given previous."""
    pool, ascent = climb.pool, climb.pool.ascent
    layer, channel = int(pool.target_layer[slot, 0]), int(pool.target_channel[slot, 0])
    width = pool.subject.channels[layer]

    def scores(features):
        z = (
            features.double() - pool.previous_optima.feature_start[layer]
        ) / pool.previous_optima.feature_std[layer].double()
        return z[:width]

    own = scores(climb.features[step][slot])
    ways = [(scores(f) / scores(f).norm(), scores(f).norm()) for f in finished]
    shares = [max(0.0, float(own @ unit + length / 4)) for unit, length in ways]
    shared = (sum(share**2 for share in shares) / max(len(shares), 1)) ** 0.5
    fade = max(1 - step / ascent.explore_steps, 0)
    return (
        ascent.repulsion * fade * float(pool.previous_optima.feature_std[layer, channel]) * shared
    )


def test_repulsion_equals_the_formula_and_fades_out():
    ascent = Ascent(max_steps=20, explore=0.5, repulsion=1.5, patience=0)
    climb = Climb(["act3:*", "conv1:*", "fc:*"], ascent=ascent)
    texts = ["act3:1", "conv1:4", "conv1:4", "-fc:3", "act3:1", "act3:6"]
    finished = {
        0: optima_of(climb, 0, "act3:1", 3),
        1: optima_of(climb, 1, "conv1:4", 5),
        3: optima_of(climb, 3, "-fc:3", 1),
        6: [],
    }
    # Slots 1 and 2 hold images of one neuron; the last two have no previous.
    active_indices = [0, 1, 1, 3, 6, 6]
    climb.enter(list(range(6)), texts, active_index=active_indices)
    climb.steps(20)
    found = torch.stack(climb.repulsions)
    for step in range(20):
        for slot in range(6):
            expected = hand_repulsion(climb, step, slot, finished[active_indices[slot]])
            assert found[step, slot].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert (found[:, 4:] == 0).all()
    assert (found[10:] == 0).all()
    assert (found[:10, :3] > 0).all()


def test_the_repulsion_of_a_composite_is_in_its_own_units():
    scales = {Component("act3", 1): Scale(0.3, 2.0), Component("conv1", 4): Scale(-1.0, 0.5)}
    ascent = Ascent(max_steps=20, explore=0.5, repulsion=1.0, patience=0)
    climb = Climb(["act3:*", "max(act3:1,conv1:4)"], ascent=ascent, scales=scales)
    finished = optima_of(climb, 0, "max(act3:1,conv1:4)", 2)
    climb.enter([0], ["max(act3:1,conv1:4)"])
    climb.steps(1)
    pool = climb.pool
    single = hand_repulsion(climb, 0, 0, finished) / float(pool.previous_optima.feature_std[0, 1])
    sigma = min(
        float(pool.previous_optima.feature_std[0, 1]) / 2.0,
        float(pool.previous_optima.feature_std[1, 4]) / 0.5,
    )
    assert climb.repulsions[0][0].item() == pytest.approx(single * sigma, rel=1e-4)


def test_the_repulsion_is_part_of_what_is_climbed():
    ascent = Ascent(max_steps=20, explore=0.5, patience=0)
    climb = Climb(["act3:*"], ascent=ascent, pool_size=2)
    optima_of(climb, 1, "act3:1", 2)
    climb.enter([0, 1], ["act3:1"] * 2)
    climb.steps(4)
    pool = climb.pool
    maps = pool.draw(1)[0]
    readings = pool.see(pool.decoder(pool.latents), maps, pool.targets, [0])
    goal = readings.value - pool._repulsion(readings.features, [0])
    (expected,) = torch.autograd.grad(-goal.sum(), pool.latents)
    readings = pool.see(pool.decoder(pool.latents), maps, pool.targets, [0])
    (unrepelled,) = torch.autograd.grad(-readings.value.sum(), pool.latents)
    pool.latents.grad = pool._step(maps)
    torch.testing.assert_close(pool.latents.grad, expected)
    torch.testing.assert_close(pool.latents.grad[0], unrepelled[0])
    assert not torch.allclose(pool.latents.grad[1], unrepelled[1])


@pytest.mark.parametrize("delays", [(0, 0, 0), (0, 1, 3), (6, 0, 12)])
def test_siblings_that_enter_later_become_the_same_images(delays):
    ascent = Ascent(max_steps=20, explore=0.4, patience=0)

    def climb_with(delays, slots):
        climb = Climb(["act3:*"], ascent=ascent, pool_size=5)
        optima_of(climb, 3, "act3:2", 2)
        climb.enter([4], ["act3:9"], active_index=1)
        for step in range(20 + max(delays)):
            due = [i for i, delay in enumerate(delays) if delay == step]
            if due:
                keys = [stream_key(0, "act3:2", i) for i in due]
                climb.enter(
                    [slots[i] for i in due], ["act3:2"] * len(due), active_index=3, key=keys
                )
            climb.steps(1)
        assert not climb.pool.running.any()
        return climb.pool.latents.detach()[list(slots)]

    together = climb_with((0, 0, 0), (0, 1, 2))
    assert len(together.flatten(1).unique(dim=0)) == 3
    assert torch.equal(climb_with(delays, (3, 1, 0)), together)


def test_only_the_images_asked_for_are_remembered_and_an_index_is_left_clean():
    climb = Climb(["act3:*", "conv1:*"], pool_size=2)
    pool = climb.pool
    images = torch.rand(3, 3, 32, 32)
    targets = climb.targets(["conv1:4"] * 3)
    features = pool.see(images, identity(3, images.device), targets, [1]).features
    previous, one = pool.previous_optima, type(targets)(*(t[:1] for t in targets))
    previous.remember(1, features, targets, torch.tensor([True, False, True]), [1])
    previous.remember(1, features[1:2], one, torch.tensor([True]), [1])
    previous.remember(1, features[1:2], one, torch.tensor([False]), [1])
    mean, std = (t[1, :8].double() for t in (previous.feature_start, previous.feature_std))
    scores = (features[:, :8].double() - mean) / std
    units = (scores / scores.norm(dim=1, keepdim=True)).float()
    # What does not repel keeps a place of zeros.
    torch.testing.assert_close(previous.directions[1, [0, 2, 3], :8], units[[0, 2, 1]])
    assert (previous.directions[1, [1, 4]] == 0).all()
    assert previous.num_optima.tolist() == [0, 3]
    assert (previous.directions[0] == 0).all()
    previous.forget(1)
    assert (previous.directions == 0).all()
    assert previous.num_optima.tolist() == [0, 0]
    previous.remember(1, features, targets, torch.tensor([True, False, True]), [1])
    assert previous.num_optima.tolist() == [0, 2]


def test_without_repulsion_nothing_is_kept():
    climb = Climb(["act3:*"], ascent=dataclasses.replace(ASCENT, repulsion=0.0))
    optima_of(climb, 0, "act3:0", 2)
    assert climb.pool.previous_optima.directions.numel() == 0
    climb.enter([0], ["act3:0"])
    climb.steps(20)
    assert climb.repulsions == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps has to be at least 1, not 0"),
        ({"explore": 1.0}, r"explore is a part of the steps in \[0, 1\), not 1.0"),
        ({"repulsion": -1.0}, "repulsion has to be >= 0"),
        ({"learning_rate": 0.0}, "learning_rate and tolerance > 0, not 4.0, 0.0, 0.01"),
        ({"tolerance": 0.0}, "learning_rate and tolerance > 0"),
        ({"patience": -1}, "patience has to be at least 0.*not -1 and 4"),
        ({"stride": 0}, "stride at least 1, not 16 and 0"),
    ],
)
def test_impossible_ascents_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Ascent(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"max_steps": 100, "explore": 0.4}, 40), ({"explore": 0.0}, 0), ({"repulsion": 0.0}, 0)],
)
def test_explored_steps(settings, expected):
    assert Ascent(**settings).explore_steps == expected
