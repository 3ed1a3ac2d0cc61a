import pytest

from polylight.ascent.objective import Scale
from polylight.ascent.scheduler import PROBE_IMAGES, Rounds, Scheduler
from polylight.errors import InputError
from polylight.neurons import Component, Neuron


def neuron(channel):
    return Neuron((Component("a", channel),))


def test_images_of_a_round_come_in_order_and_neurons_in_flight_first():
    queue = Scheduler([neuron(0), neuron(1)], Rounds(round_size=2, min_images=8, max_images=8), 4)
    first = queue.take(3)
    assert [(str(t.flight.neuron), t.index) for t in first] == [("a:0", 0), ("a:0", 1), ("a:1", 0)]
    assert not queue.give_back(first[0], broken=False)
    assert queue.give_back(first[1], broken=False)
    queue.next_round(first[0].flight)
    taken = queue.take(3)
    assert [(str(t.flight.neuron), t.index) for t in taken] == [("a:1", 1), ("a:0", 0), ("a:0", 1)]
    assert taken[1].flight.earlier == 2


def test_the_last_round_is_cut_to_the_most_images():
    queue = Scheduler([neuron(0)], Rounds(round_size=4, min_images=1, max_images=6), 4)
    flight = queue.take(4)[0].flight
    queue.next_round(flight)
    assert flight.round_size == 2
    assert flight.total == 6


def test_broken_images_are_tried_again_before_anything_else():
    queue = Scheduler([neuron(0), neuron(1)], Rounds(round_size=1, retries=2), 4)
    (ticket,) = queue.take(1)
    for attempt in (1, 2):
        assert not queue.give_back(ticket, broken=True)
        (ticket,) = queue.take(1)
        assert (str(ticket.flight.neuron), ticket.attempt) == ("a:0", attempt)
    assert queue.give_back(ticket, broken=True)


def test_composites_wait_for_their_components():
    components = (Component("a", 0), Component("a", 1))
    queue = Scheduler([Neuron(components, "max"), neuron(7)], Rounds(round_size=1), 8)
    taken = queue.take(8)
    probes = [*[("a:0", True)] * PROBE_IMAGES, *[("a:1", True)] * PROBE_IMAGES]
    assert [(str(t.flight.neuron), t.flight.probe) for t in taken] == [*probes, ("a:7", False)]
    for i, ticket in enumerate(taken[:-1], 1):
        assert queue.give_back(ticket, broken=False) == (i % PROBE_IMAGES == 0)
    for component, ticket in zip(components, taken[::PROBE_IMAGES], strict=False):
        queue.set_scale(component, Scale(0.0, 1.0))
        queue.land(ticket.flight)
    assert [str(t.flight.neuron) for t in queue.take(8)] == ["max(a:0,a:1)"]
    assert not queue.waiting
    assert not queue.drained


def test_every_seat_is_used_once_at_a_time():
    queue = Scheduler([neuron(c) for c in range(5)], Rounds(round_size=1), 2)
    first = queue.take(5)
    assert sorted(t.flight.active_index for t in first) == [0, 1]
    queue.give_back(first[0], broken=False)
    queue.land(first[0].flight)
    (third,) = queue.take(5)
    assert third.flight.active_index == first[0].flight.active_index


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
