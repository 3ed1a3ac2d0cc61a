import pytest

from polylight.ascent.objective import Scale
from polylight.ascent.scheduler import PROBE_IMAGES, Rounds, Scheduler
from polylight.errors import InputError
from polylight.neurons import Component, Neuron


def neuron(channel):
    return Neuron((Component("a", channel),))


def test_images_of_a_round_come_in_order_and_neurons_that_are_active_first():
    source, scheduler = (
        iter([neuron(0), neuron(1)]),
        Scheduler(Rounds(round_size=2, min_images=8, max_images=8), 4),
    )
    first = scheduler.take(3, source)
    assert [(str(t.active.neuron), t.index) for t in first] == [("a:0", 0), ("a:0", 1), ("a:1", 0)]
    assert not scheduler.give_back(first[0], is_broken=False)
    assert scheduler.give_back(first[1], is_broken=False)
    scheduler.next_round(first[0].active)
    taken = scheduler.take(3, source)
    assert [(str(t.active.neuron), t.index) for t in taken] == [("a:1", 1), ("a:0", 0), ("a:0", 1)]
    assert taken[1].active.earlier == 2


def test_the_last_round_is_cut_to_the_most_images():
    source = iter([neuron(0)])
    scheduler = Scheduler(Rounds(round_size=4, min_images=1, max_images=6), 4)
    active = scheduler.take(4, source)[0].active
    scheduler.next_round(active)
    assert active.round_size == 2
    assert active.num_images == 6


def test_broken_images_are_tried_again_before_anything_else():
    source, scheduler = iter([neuron(0), neuron(1)]), Scheduler(Rounds(round_size=1, retries=2), 4)
    (task,) = scheduler.take(1, source)
    for attempt in (1, 2):
        assert not scheduler.give_back(task, is_broken=True)
        (task,) = scheduler.take(1, source)
        assert (str(task.active.neuron), task.attempt) == ("a:0", attempt)
    assert scheduler.give_back(task, is_broken=True)


def test_composites_wait_for_their_components():
    components = (Component("a", 0), Component("a", 1))
    source, scheduler = iter([Neuron(components, "max"), neuron(7)]), Scheduler(Rounds(), 8)
    taken = scheduler.take(8, source)
    probes = [*[("a:0", True)] * PROBE_IMAGES, *[("a:1", True)] * PROBE_IMAGES]
    assert [(str(t.active.neuron), t.active.is_probe) for t in taken] == [*probes, ("a:7", False)]
    for i, task in enumerate(taken[:-1], 1):
        assert scheduler.give_back(task, is_broken=False) == (i % PROBE_IMAGES == 0)
    for component, task in zip(components, taken[::PROBE_IMAGES], strict=False):
        scheduler.set_scale(component, Scale(0.0, 1.0))
        scheduler.finish(task.active)
    assert [str(t.active.neuron) for t in scheduler.take(8, source)] == ["max(a:0,a:1)"]
    assert not scheduler.idle
    assert scheduler.take(8, source) == []


def test_every_index_is_used_once_at_a_time():
    source, scheduler = map(neuron, range(5)), Scheduler(Rounds(), 2)
    first = scheduler.take(5, source)
    assert sorted(t.active.index for t in first) == [0, 1]
    scheduler.give_back(first[0], is_broken=False)
    scheduler.finish(first[0].active)
    (third,) = scheduler.take(5, source)
    assert third.active.index == first[0].active.index


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        ([0.5], False),
        ([0.5, 0.51], False),
        ([0.5, 0.51, 0.52], True),
        ([0.5, 0.51, 0.54], False),
        ([0.9, 0.5, 0.51, 0.5], True),
        ([0.5, 0.55, 0.55], False),
    ],
)
def test_the_elbow_needs_patience(similarities, expected):
    assert Rounds(tolerance=0.02, patience=2).elbow(similarities) is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"round_size": 0}, "round_size and patience have to be at least 1"),
        ({"min_images": 9, "max_images": 8}, "min_images has to be between 1 and max_images"),
        ({"max_images": 0, "min_images": 0}, "min_images has to be between"),
    ],
)
def test_impossible_rounds_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Rounds(**settings)


def test_a_neuron_behind_a_composite_that_waits_starts():
    pair = (Component("a", 0), Component("a", 1))
    source = iter([Neuron(pair, "max"), Neuron(pair, "min"), neuron(7)])
    scheduler = Scheduler(Rounds(), 8)
    names = [str(t.active.neuron) for t in scheduler.take(8, source)]
    assert names == [*["a:0"] * PROBE_IMAGES, *["a:1"] * PROBE_IMAGES, "a:7"]


def test_neurons_are_drawn_only_as_there_is_room():
    drawn = []
    source = (drawn.append(c) or neuron(c) for c in range(9))
    scheduler = Scheduler(Rounds(), 4)
    assert len(scheduler.take(3, source)) == len(drawn) == 3
    assert len(scheduler.take(3, source)) == 1
    assert drawn == [0, 1, 2, 3]
