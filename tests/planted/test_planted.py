import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from polylight.errors import InputError
from polylight.neurons import Component, LayerShape, Neuron, parse_neurons
from polylight.planted import (
    Pair,
    allowed_channels,
    channel_correlations,
    draw_planted,
    half,
    pool_images,
    similar_and_dissimilar,
)
from tests.example_rows import make_row

LAYER = "blocks.4"
ASKED = {
    "seed": 3,
    "singles": 12,
    "composites": {2: 20, 3: 10, 4: 5},
    "minima": 6,
    "copies": 6,
    "twins": [(7, 2), (90, 41)],
}


def draw(channels=112, **changes):
    return draw_planted(LAYER, channels, **{**ASKED, **changes})


def channels_of(planted):
    return tuple(component.channel for component in planted.components)


def test_as_many_of_each_kind_as_asked_for():
    planted = draw()
    kinds = Counter((p.kind, p.m, len(p.components)) for p in planted)
    assert kinds == {
        ("single", 1, 1): 12 + 4,
        ("max", 2, 2): 20,
        ("max", 3, 3): 10,
        ("max", 4, 4): 5,
        ("min", 1, 2): 6,
        ("copies", 1, 2): 6,
        ("twins", 1, 2): 2,
    }
    operations = {(p.kind, p.neuron.operation) for p in planted}
    assert operations == {
        ("single", ""),
        ("max", "max"),
        ("min", "min"),
        ("copies", "max"),
        ("twins", "max"),
    }
    assert all(p.neuron.components == p.components for p in planted)


def test_every_part_is_a_single_and_no_neuron_comes_twice():
    planted = draw()
    singles = {p.components[0] for p in planted if p.kind == "single"}
    assert all(set(p.components) <= singles for p in planted)
    assert len({str(p.neuron) for p in planted}) == len(planted)
    assert all(
        len(set(p.components)) == len(p.components) for p in planted if p.kind in ("max", "min")
    )
    assert all(len(set(p.components)) == 1 for p in planted if p.kind == "copies")


def test_singles_are_parts_of_equally_many():
    planted = draw()
    drawn = {channels_of(p)[0] for p in planted if p.kind == "single"} - {7, 2, 90, 41}
    for kinds in ({"max"}, {"max", "min"}):
        used = Counter(c for p in planted if p.kind in kinds for c in channels_of(p))
        assert set(used) == drawn
        assert max(used.values()) - min(used.values()) <= 1
    # Twins have one feature together, so a composite of both would not have as many as components.
    assert [channels_of(p) for p in planted if p.kind == "twins"] == [(2, 7), (41, 90)]


def test_all_composites_there_are_can_be_drawn():
    planted = draw(singles=5, composites={2: 10, 5: 1}, minima=10, copies=5, twins=[])
    singles = [channels_of(p)[0] for p in planted if p.kind == "single"]
    pairs = [channels_of(p) for p in planted if p.kind == "max" and p.m == 2]
    assert sorted(pairs) == list(itertools.combinations(singles, 2))


def test_the_same_seed_and_layer_draw_the_same():
    assert draw() == draw()
    assert draw() != draw(seed=4)
    other = draw_planted("blocks.5", 112, **ASKED)
    assert [channels_of(p) for p in other] != [channels_of(p) for p in draw()]


def test_more_singles_are_the_same_and_some_more():
    few = {p for p in draw() if p.kind == "single"}
    assert few < {p for p in draw(singles=20) if p.kind == "single"}


def test_what_is_drawn_is_pinned():
    planted = draw(twins=[])
    singles = [channels_of(p)[0] for p in planted if p.kind == "single"]
    assert singles == [30, 39, 41, 51, 68, 71, 73, 86, 92, 98, 103, 111]
    assert next(channels_of(p) for p in planted if p.m == 4) == (30, 51, 98, 111)


def test_further_composites_are_of_screened_channels():
    screened = set(range(0, 112, 3))
    plain = draw(screened=screened)
    assert plain == draw()
    planted = draw(screened=screened, screened_composites={2: 3, 4: 2, 5: 1}, twins=[])
    singles = {channels_of(p)[0] for p in planted if p.kind == "single"}
    assert len(singles) == ASKED["singles"] == 12
    assert len(singles & screened) == 6
    before = Counter(p.m for p in draw(twins=[]) if p.kind == "max")
    made = [p for p in planted if p.kind == "max"]
    assert Counter(p.m for p in made) == before + Counter({2: 3, 4: 2, 5: 1})
    assert len({str(p.neuron) for p in planted}) == len(planted)
    of_one_feature = Counter(p.m for p in made if set(channels_of(p)) <= screened)
    assert all(of_one_feature[m] >= count for m, count in ((2, 3), (4, 2), (5, 1)))
    # More singles are the same and some more, of both kinds as long as there are both.
    more = draw(singles=20, screened=screened, screened_composites={2: 3}, twins=[])
    more_singles = {channels_of(p)[0] for p in more if p.kind == "single"}
    assert singles < more_singles
    assert len(more_singles & screened) == 10
    few = draw(singles=12, screened={3, 6, 9}, screened_composites={3: 1}, twins=[])
    assert {3, 6, 9} <= {channels_of(p)[0] for p in few if p.kind == "single"}
    assert any(p.m == 3 and channels_of(p) == (3, 6, 9) for p in few)


def test_all_composites_of_screened_channels_can_be_drawn_but_no_more():
    given = {"singles": 6, "minima": 0, "copies": 0, "twins": [], "screened": {0, 3, 6}}
    planted = draw(**given, composites={}, screened_composites={2: 3})
    pairs = [channels_of(p) for p in planted if p.m == 2]
    assert sorted(pairs) == [(0, 3), (0, 6), (3, 6)]
    with pytest.raises(InputError, match=r"4 screened composites .* give only 3 that are not yet"):
        draw(**given, composites={}, screened_composites={2: 4})
    # One that is drawn already counts as such.
    with pytest.raises(InputError, match=r"3 screened composites .* give only 0 that are not yet"):
        draw(**given, composites={2: 15}, screened_composites={2: 3})


def test_unlike_pairs_are_composites_and_classes_are_logits():
    planted = draw(unlike=[(50, 3)], kind="logits")
    assert Counter(p.m for p in planted if p.kind == "logits") == {2: 21, 3: 10, 4: 5}
    assert any(p.kind == "logits" and channels_of(p) == (3, 50) for p in planted)
    assert {(3,), (50,)} <= {channels_of(p) for p in planted if p.kind == "single"}


def test_excluded_channels_and_the_other_half_are_left_out():
    planted = draw(exclude=range(40), twins=[], only="report")
    used = {c for p in planted for c in channels_of(p)}
    assert min(used) >= 40
    assert {half(c) for c in used} == {"report"}


def test_halves_are_disjoint_whole_and_about_equal():
    tune = allowed_channels(2000, only="tune")
    report = allowed_channels(2000, only="report")
    assert sorted(tune + report) == list(range(2000))
    assert len(tune) == len(report)
    assert [half(c)[0] for c in range(6)] == ["t", "r", "t", "r", "t", "r"]


@pytest.mark.parametrize("planted", draw(), ids=lambda p: str(p.neuron))
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
            "112 channels 0 are excluded or of the other half, and 4 are in given pairs",
        ),
        ({"singles": 3}, r"20 composites of layer 'blocks.4' are asked for with 2 channels each"),
        ({"singles": 5, "composites": {}, "minima": 11}, "11 minima.*give only 10"),
        ({"copies": 13}, "13 copies.*12 single channels give only 12"),
        ({"composites": {1: 3}}, "a composite has at least 2 components, not 1"),
        ({"twins": [(1, 1)]}, r"channel 1 of the pair \(1, 1\) is in two places"),
        ({"twins": [(1, 2)], "unlike": [(2, 3)]}, "channel 2 .* is in two places"),
        ({"twins": [(1, 112)]}, r"channel 112 .* is none that may be used.*\(0 to 111\)"),
        ({"exclude": [7]}, "channel 7 .* is none that may be used"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        draw(**changes)


def features():
    """Six channels: 0 and 3 alike, 1 and 4 nearly so, 2 against 5; and one that is constant."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, 3, generator=generator)
    noise = torch.randn(400, 3, generator=generator)
    mixed = torch.stack(
        [base[:, 0] + 0.1 * noise[:, 0], base[:, 1] + noise[:, 1], -base[:, 2] + noise[:, 2]], 1
    )
    return torch.cat([base, 3.0 * mixed + 7.0, torch.full((400, 1), 0.1)], 1)


def test_correlations_are_numpys():
    found = channel_correlations(features())
    expected = np.corrcoef(features()[:, :6].double().numpy(), rowvar=False)
    np.testing.assert_allclose(found[:6, :6].numpy(), expected, atol=1e-12)
    assert found[6].isnan().all()
    assert found[:, 6].isnan().all()


def most_alike(*args, **kwargs):
    return [pair[:2] for pair in similar_and_dissimilar(*args, 0, **kwargs)[0]]


def test_the_most_alike_pairs_share_no_channel():
    assert most_alike(features(), 2) == [(0, 3), (1, 4)]
    assert most_alike(features(), 1, channels=[1, 2, 4, 5]) == [(1, 4)]
    assert most_alike(features(), 0) == []


def test_pairs_share_no_channel():
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(50, 60, generator=generator)
    pairs = most_alike(wide, 30)
    assert sorted(c for pair in pairs for c in pair) == list(range(60))
    correlation = channel_correlations(wide)
    values = [correlation[pair].item() for pair in pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(correlation.fill_diagonal_(-1).max().item())


def test_similar_and_dissimilar_pairs_are_the_two_ends():
    similar, dissimilar = similar_and_dissimilar(features(), 1, 1)
    expected = channel_correlations(features())
    assert similar == [Pair(0, 3, expected[0, 3].item())]
    assert dissimilar == [Pair(2, 5, expected[2, 5].item())]
    similar, dissimilar = similar_and_dissimilar(torch.randn(20, 12), 3, 3)
    assert len({c for pair in similar + dissimilar for c in pair[:2]}) == 12
    assert [p.correlation for p in similar] == sorted(
        (p.correlation for p in similar), reverse=True
    )
    assert [p.correlation for p in dissimilar] == sorted(p.correlation for p in dissimilar)


@pytest.mark.parametrize(
    ("features", "count", "message"),
    [
        (features(), 4, "4 pairs .* only 3 are left"),
        (torch.zeros(2, 5), 1, r"at least 3 images, got \[2, 5\]"),
        (torch.zeros(5), 1, r"got \[5\]"),
        (torch.full((4, 2), torch.nan), 1, "must be finite"),
    ],
)
def test_unfit_features_are_refused(features, count, message):
    with pytest.raises(InputError, match=message):
        most_alike(features, count)


@pytest.mark.parametrize("channels", [[0, 7], [-1, 3]])
def test_channels_that_are_not_there_are_refused(channels):
    with pytest.raises(InputError, match="but the features are of 7: 0 to 6"):
        most_alike(features(), 1, channels=channels)


def rows():
    labels = [[0, -1, 0, 1, 0], [0, 0, 0, 0, 0], [-1, -1, 0, 0, 0]]
    return [
        dataclasses.replace(make_row(f"{LAYER}:{c}", n=5), label=np.array(label, np.int32))
        for c, label in enumerate(labels)
    ]


def test_pooled_images_are_the_first_that_count_of_each_row():
    pooled = pool_images(rows(), 8)
    assert pooled.dtype == np.int64
    assert pooled.tolist() == [[0, 0], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [2, 2], [2, 3]]


@pytest.mark.parametrize(
    ("which", "count", "message"),
    [
        ([0, 1, 2], 12, "4 images of 'blocks.4:2' are needed for a pool of 12, but only 3 of its"),
        ([0, 0], 4, "from different neurons"),
        ([0, 1, 2], 2, "at least one image of each, but 2 images"),
        ([], 2, "2 images of no neurons"),
    ],
)
def test_pools_that_cannot_be_made_are_refused(which, count, message):
    with pytest.raises(InputError, match=message):
        pool_images([rows()[index] for index in which], count)
