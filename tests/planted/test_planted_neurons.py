import itertools
from collections import Counter

import pytest

from polylight.errors import InputError
from polylight.neurons import Component, LayerShape, Neuron, parse_neurons
from polylight.planted.neurons import Sizes, allowed_channels, plant_neurons

LAYER = "blocks.4"
SIZES = {"singles": 12, "composites": {2: 20, 3: 10, 4: 5}, "minima": 6, "copies": 6}
PAIRS = [(7, 2), (90, 41)]


def plant(channels=112, *, layer=LAYER, **changes):
    """Planted neurons; ``of_screened`` is the size that is called ``screened``."""
    sizes = {name: changes.pop(name, value) for name, value in SIZES.items()}
    sizes["screened"] = changes.pop("of_screened", {})
    return plant_neurons(
        layer, channels, Sizes(**sizes), **{"seed": 3, "near_duplicates": PAIRS, **changes}
    )


def test_as_many_of_each_kind_as_asked_for():
    planted = plant()
    kinds = Counter((p.kind, p.m, len(p.channels)) for p in planted)
    assert kinds == {
        ("single", 1, 1): 12 + 4,
        ("max", 2, 2): 20,
        ("max", 3, 3): 10,
        ("max", 4, 4): 5,
        ("min", 1, 2): 6,
        ("copies", 1, 2): 6,
        ("near_duplicates", 1, 2): 2,
    }
    operations = {(p.kind, p.neuron.operation) for p in planted}
    assert operations == {
        ("single", ""),
        ("max", "max"),
        ("min", "min"),
        ("copies", "max"),
        ("near_duplicates", "max"),
    }
    assert all(c.layer == LAYER for p in planted for c in p.neuron.components)


def test_every_component_is_a_single_and_no_neuron_comes_twice():
    planted = plant()
    singles = {p.neuron.components[0] for p in planted if p.kind == "single"}
    assert all(set(p.neuron.components) <= singles for p in planted)
    assert len({str(p.neuron) for p in planted}) == len(planted)
    assert all(len(set(p.channels)) == len(p.channels) for p in planted if p.kind in ("max", "min"))
    assert all(len(set(p.channels)) == 1 for p in planted if p.kind == "copies")


def test_singles_are_components_of_equally_many():
    planted = plant()
    drawn = {p.channels[0] for p in planted if p.kind == "single"} - {7, 2, 90, 41}
    for kinds in ({"max"}, {"max", "min"}):
        used = Counter(c for p in planted if p.kind in kinds for c in p.channels)
        assert set(used) == drawn
        assert max(used.values()) - min(used.values()) <= 1
    # Near-duplicates have one feature together: no composite has both.
    assert [p.channels for p in planted if p.kind == "near_duplicates"] == [(2, 7), (41, 90)]


def test_all_composites_there_are_can_be_drawn():
    planted = plant(singles=5, composites={2: 10, 5: 1}, minima=10, copies=5, near_duplicates=[])
    singles = [p.channels[0] for p in planted if p.kind == "single"]
    pairs = [p.channels for p in planted if p.kind == "max" and p.m == 2]
    assert sorted(pairs) == list(itertools.combinations(singles, 2))


def test_the_same_seed_and_layer_draw_the_same():
    assert plant() == plant()
    assert plant() != plant(seed=4)
    other = plant(layer="blocks.5")
    assert [p.channels for p in other] != [p.channels for p in plant()]


def test_more_singles_are_the_same_and_some_more():
    few = {p for p in plant() if p.kind == "single"}
    assert few < {p for p in plant(singles=20) if p.kind == "single"}


def test_what_is_drawn_is_pinned():
    planted = plant(near_duplicates=[])
    singles = [p.channels[0] for p in planted if p.kind == "single"]
    assert singles == [30, 39, 41, 51, 68, 71, 73, 86, 92, 98, 103, 111]
    assert next(p.channels for p in planted if p.m == 4) == (30, 51, 98, 111)


def test_further_composites_are_of_screened_channels():
    screened = set(range(0, 112, 3))
    plain = plant(screened=screened)
    assert plain == plant()
    planted = plant(screened=screened, of_screened={2: 3, 4: 2, 5: 1}, near_duplicates=[])
    singles = {p.channels[0] for p in planted if p.kind == "single"}
    assert len(singles) == SIZES["singles"] == 12
    assert len(singles & screened) == 6
    before = Counter(p.m for p in plant(near_duplicates=[]) if p.kind == "max")
    made = [p for p in planted if p.kind == "max"]
    assert Counter(p.m for p in made) == before + Counter({2: 3, 4: 2, 5: 1})
    assert len({str(p.neuron) for p in planted}) == len(planted)
    of_one_feature = Counter(p.m for p in made if set(p.channels) <= screened)
    assert all(of_one_feature[m] >= count for m, count in ((2, 3), (4, 2), (5, 1)))
    # More singles are the same and some more, of both kinds as long as there are both.
    more = plant(singles=20, screened=screened, of_screened={2: 3}, near_duplicates=[])
    more_singles = {p.channels[0] for p in more if p.kind == "single"}
    assert singles < more_singles
    assert len(more_singles & screened) == 10
    few = plant(singles=12, screened={3, 6, 9}, of_screened={3: 1}, near_duplicates=[])
    assert {3, 6, 9} <= {p.channels[0] for p in few if p.kind == "single"}
    assert any(p.m == 3 and p.channels == (3, 6, 9) for p in few)


def test_all_composites_of_screened_channels_can_be_drawn_but_no_more():
    given = {"singles": 6, "minima": 0, "copies": 0, "near_duplicates": [], "screened": {0, 3, 6}}
    planted = plant(**given, composites={}, of_screened={2: 3})
    pairs = [p.channels for p in planted if p.m == 2]
    assert sorted(pairs) == [(0, 3), (0, 6), (3, 6)]
    with pytest.raises(InputError, match=r"4 screened composites .* give only 3 that are not yet"):
        plant(**given, composites={}, of_screened={2: 4})
    # One that is drawn already counts as such.
    with pytest.raises(InputError, match=r"3 screened composites .* give only 0 that are not yet"):
        plant(**given, composites={2: 15}, of_screened={2: 3})


def test_dissimilar_pairs_are_composites_and_classes_are_logits():
    planted = plant(dissimilar=[(50, 3)], kind="logits")
    assert Counter(p.m for p in planted if p.kind == "logits") == {2: 21, 3: 10, 4: 5}
    assert any(p.kind == "logits" and p.channels == (3, 50) for p in planted)
    assert {(3,), (50,)} <= {p.channels for p in planted if p.kind == "single"}


def test_excluded_channels_and_the_other_split_are_left_out():
    planted = plant(exclude=range(40), near_duplicates=[], split="test")
    used = {c for p in planted for c in p.channels}
    assert min(used) >= 40
    assert {c % 2 for c in used} == {1}


def test_splits_are_the_even_and_the_odd_channels():
    assert allowed_channels(7, split="tune") == [0, 2, 4, 6]
    assert allowed_channels(7, split="test") == [1, 3, 5]
    assert allowed_channels(7, exclude=[3, 4]) == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("planted", plant(), ids=lambda p: str(p.neuron))
def test_planted_neurons_are_their_text(planted):
    text = str(planted.neuron)
    assert parse_neurons([text], {LAYER: LayerShape(112, (7, 7))}) == [planted.neuron]


def test_copies_keep_both_components():
    component = Component(LAYER, 5)
    neuron = Neuron((component, component), "max")
    assert str(neuron) == "max(blocks.4:5,blocks.4:5)"
    assert parse_neurons([str(neuron)], {LAYER: LayerShape(8, ())}) == [neuron]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"singles": 109},
            r"109 single channels are asked for, but layer 'blocks.4' has 108 to draw from: of its "
            "112 channels 0 are excluded or of the other split, and 4 are in given pairs",
        ),
        ({"singles": 3}, r"20 composites of layer 'blocks.4' are asked for with 2 channels each"),
        ({"singles": 5, "composites": {}, "minima": 11}, "11 minima.*give only 10"),
        ({"copies": 13}, "13 copies.*12 single channels give only 12"),
        ({"composites": {1: 3}}, "a composite has at least 2 components, not 1"),
        ({"near_duplicates": [(1, 1)]}, r"channel 1 of the pair \(1, 1\) is in two places"),
        ({"near_duplicates": [(1, 2)], "dissimilar": [(2, 3)]}, "channel 2 .* is in two places"),
        ({"near_duplicates": [(1, 112)]}, r"channel 112 .* is none that may be used.*\(0 to 111\)"),
        ({"exclude": [7]}, "channel 7 .* is none that may be used"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        plant(**changes)


@pytest.mark.parametrize("name", ["singles", "minima", "copies", "near_duplicates", "dissimilar"])
def test_sizes_are_not_negative(name):
    with pytest.raises(InputError, match=f"sizes cannot be negative, but {name} is -1"):
        Sizes(**{name: -1})
    assert getattr(Sizes(**{name: 0}), name) == 0


def test_numbers_of_composites_are_not_negative():
    with pytest.raises(InputError, match="negative, but composites of 3 is -2"):
        Sizes(composites={2: 1, 3: -2})
    assert Sizes(composites={2: 0}).composites == {2: 0}
