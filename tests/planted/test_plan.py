import re

import numpy as np
import pytest
import torch

from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.networks import Layer, load_model
from polylight.networks.subject import Subject
from polylight.planted.neurons import Sizes
from polylight.planted.plan import (
    ChannelPair,
    _plan_layer,
    _texture_activations,
    channel_correlations,
    plan_layers,
    similar_and_dissimilar,
)

WIDTH = 12
NONE = Sizes(singles=0, composites={}, minima=0, copies=0, near_duplicates=0, dissimilar=0)
SMALL = Sizes(
    singles=4, composites={2: 2, 3: 1}, minima=1, copies=1, near_duplicates=1, dissimilar=1
)
PARAMETRIZATION = Parametrization(size=24)


def sizes(**changes):
    return Sizes(**(vars(NONE) | changes))


def planted_activations(correlations, channels=WIDTH, images=64):
    """Features whose only correlations, and what they are, are given: float64 [images, C]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images, channels + 1, generator=generator, dtype=torch.float64)
    noise[:, 0] = 1.0
    # At right angles to a constant: the columns have mean 0.
    features = torch.linalg.qr(noise).Q[:, 1:]
    for (first, second), r in correlations.items():
        features[:, second] = r * features[:, first] + (1 - r * r) ** 0.5 * features[:, second]
    # Neither scale nor mean matters.
    scale = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5
    return 3.0 * scale * features - 5.0


def plan(features, sizes, *, split="all", seed=0, kind="Conv2d", size=(8, 8), screened=()):
    layer = Layer("a", kind, features.shape[1], size)
    seen = {f"a:{c}": c in screened for c in range(features.shape[1])} if screened else {}
    return _plan_layer(layer, features, sizes, seed, split, seen)


def channels_of(found, kind, m=1):
    made = [p for p in found.planted if (p.kind, p.m) == (kind, m)]
    return [p.channels for p in made]


def used(found):
    return {c for p in found.planted for c in p.channels}


def plan_of(layers, **changes):
    given = {
        "model": load_model("tiny:subject"),
        "layers": layers,
        "parametrization": PARAMETRIZATION,
        "canvas": 32,
        "sizes": SMALL,
        "seed": 0,
        "split": "all",
    }
    return plan_layers(**(given | changes))


def test_pairs_are_near_duplicates_where_they_do_nearly_the_same_else_composites_of_two():
    features = planted_activations({(1, 8): 0.901, (3, 6): 0.899, (2, 9): -0.7, (4, 5): 0.5})
    found = plan(
        features, sizes(singles=4, near_duplicates=2, dissimilar=1, composites={2: 2}, copies=1)
    )
    assert channels_of(found, "near_duplicates") == [(1, 8)]
    composites = channels_of(found, "max", 2)
    assert composites[2:] == [(2, 9), (3, 6)]
    expected = {"max(a:1,a:8)": 0.901, "max(a:3,a:6)": 0.899, "max(a:2,a:9)": -0.7}
    assert dict(found.similarity) == pytest.approx(expected, abs=1e-12)
    # The channels of pairs are scored by themselves, and are part of nothing else.
    paired = {1, 2, 3, 6, 8, 9}
    singles = {c for (c,) in channels_of(found, "single")}
    assert paired < singles
    assert len(singles) == 4 + 6
    assert {c for members in composites[:2] for c in members} <= singles - paired
    assert len(channels_of(found, "copies")) == 1
    assert not found.classes


def test_the_most_similar_pairs_come_first():
    features = planted_activations({(0, 1): 0.93, (2, 3): 0.99, (4, 5): 0.96, (6, 7): -0.9})
    found = plan(features, sizes(near_duplicates=2, dissimilar=1))
    assert channels_of(found, "near_duplicates") == [(2, 3), (4, 5)]
    assert channels_of(found, "max", 2) == [(6, 7)]
    assert len(found.planted) == 6 + 3


def test_channels_that_never_move_are_left_out():
    features = planted_activations({})
    features[:, 0] = 3.7
    features[:, 5] = -2.0 + 1e-8 * features[:, 4]
    features[:, 7] = 1e-4 * features[:, 7]
    alive = sorted({*range(WIDTH)} - {0, 5})
    found = plan(features, sizes(singles=10))
    assert channels_of(found, "single") == [(c,) for c in alive]
    message = (
        "layer 'a' has 12 channels, of which 10 can be used (split: all; 2 never move), but 7 "
        "singles and 2 pairs need 11; ask for fewer or take a wider layer."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        plan(features, sizes(singles=7, near_duplicates=1, dissimilar=1))
    assert used(plan(features, sizes(singles=6, near_duplicates=1, dissimilar=1))) == {*alive}


def test_a_layer_that_never_moves_has_no_channel_to_use():
    with pytest.raises(InputError, match=r"of which 0 can be used \(split: all; 12 never move\)"):
        plan(torch.ones(64, WIDTH), sizes(singles=1))


@pytest.mark.parametrize(("split", "first"), [("tune", 0), ("test", 1)])
def test_only_channels_of_a_split_are_used(split, first):
    # The most and least similar pairs are of both splits, or of the other one.
    features = planted_activations({(0, 1): 0.99, (2, 3): -0.99, (6, 8): 0.95, (7, 9): 0.94})
    found = plan(
        features, sizes(singles=2, composites={2: 1}, near_duplicates=1, dissimilar=1), split=split
    )
    assert used(found) == {*range(first, WIDTH, 2)}
    assert channels_of(found, "near_duplicates") == [(6 + first, 8 + first)]
    with pytest.raises(InputError, match=f"of which 6 can be used .split: {split}; 0 never move"):
        plan(features, sizes(singles=7), split=split)


def test_composites_of_screened_channels_need_photos_but_for_classes():
    asked = sizes(singles=4, composites={2: 1}, screened={2: 1})
    features = planted_activations({})
    assert len(channels_of(plan(features, asked), "max", 2)) == 1
    found = plan(features, asked, screened=(1, 4, 5, 11))
    pairs = channels_of(found, "max", 2)
    assert len(pairs) == 2
    assert any(set(pair) <= {1, 4, 5, 11} for pair in pairs)
    assert len({c for (c,) in channels_of(found, "single")} & {1, 4, 5, 11}) == 2
    classes = plan(features, asked, kind="Linear", size=())
    assert len(channels_of(classes, "logits", 2)) == 2


def test_composites_of_classes_are_of_logits():
    features = planted_activations({(1, 8): 0.95, (2, 9): -0.7})
    asked = sizes(singles=3, composites={2: 1, 3: 1}, minima=1, near_duplicates=1, dissimilar=1)
    found = plan(features, asked, kind="Linear", size=())
    assert found.classes
    assert channels_of(found, "logits", 2)[1:] == [(2, 9)]
    assert [len(members) for members in channels_of(found, "logits", 3)] == [3]
    assert channels_of(found, "near_duplicates") == [(1, 8)]
    assert dict(found.similarity) == pytest.approx({"max(a:1,a:8)": 0.95, "max(a:2,a:9)": -0.7})
    assert "max" not in {p.kind for p in found.planted}
    # A linear layer of tokens has no classes, nor has what pools a map.
    assert not plan(features, asked, kind="Linear", size=(7,)).classes
    assert not plan(features, asked, kind="Flatten", size=()).classes


def test_the_seed_alone_decides_what_is_drawn():
    def text(seed):
        found = plan_of(["conv2", "conv3"], sizes=sizes(singles=6, composites={2: 3}), seed=seed)
        return [[str(p.neuron) for p in layer.planted] for layer in found]

    first = text(5)
    assert text(5) == first
    assert all(a != b for a, b in zip(first, text(6), strict=True))
    # A layer's neurons do not depend on the others.
    alone = plan_of(["conv3"], sizes=sizes(singles=6, composites={2: 3}), seed=5)
    assert [str(p.neuron) for p in alone[0].planted] == first[1]


def test_layers_of_a_network_are_planned_as_asked():
    found = plan_of(["fc", "conv3"])
    assert [layer.layer for layer in found] == ["fc", "conv3"]
    assert [layer.classes for layer in found] == [True, False]
    for layer, composite in zip(found, ("logits", "max"), strict=True):
        assert len(channels_of(layer, "single")) == 4 + 4
        assert (
            len(channels_of(layer, composite, 2)) + len(channels_of(layer, "near_duplicates")) == 4
        )
        assert len(channels_of(layer, composite, 3)) == 1
        assert len(channels_of(layer, "min")) == 1
        ((twice, again),) = channels_of(layer, "copies")
        assert twice == again
        assert len(layer.similarity) == 2
        assert all(
            component.layer == layer.layer
            for p in layer.planted
            for component in p.neuron.components
        )
        is_near = {str(p.neuron): p.kind == "near_duplicates" for p in layer.planted}
        assert all(is_near[n] == (r >= 0.9) for n, r in layer.similarity.items())


def test_textures_give_the_mean_activations_before_the_rectifier():
    model = load_model("tiny:subject")
    found = _texture_activations(Subject(model, ["act2", "fc"], 32), PARAMETRIZATION, 32)
    keys = torch.tensor([stream_key("texture", i) for i in range(256)])
    # Of standard deviation 1, whatever ascents start from, in a grey frame.
    wide = Parametrization(size=24, sd=1.0)
    images = torch.full((256, 3, 32, 32), 0.5)
    images[..., 4:28, 4:28] = ImageDecoder(wide)(wide.initial_latents(keys))
    assert 0.05 < images.std() < 0.3
    net = load_model("tiny:subject").net.double()
    before = net[:3](model.preprocess(images.double()))
    after = net[3:](before)
    assert (before.mean((2, 3)) < 0).any()
    for features, expected in zip(found, (before.mean((2, 3)), after), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(features.double(), expected, rtol=0, atol=1e-4 * scale)


def test_a_channel_that_textures_do_not_activate_is_used_and_one_without_weights_is_not():
    model = load_model("tiny:subject")
    with torch.no_grad():
        model.net.conv2.weight[3] = 0.0
        model.net.conv2.bias[5] = -1e4
    (found,) = plan_of(["act2"], model=model, sizes=sizes(singles=15))
    assert channels_of(found, "single") == [(c,) for c in range(16) if c != 3]
    with pytest.raises(InputError, match=r"of which 15 can be used \(split: all; 1 never move"):
        plan_of(["act2"], model=model, sizes=sizes(singles=16))


def test_layers_that_do_not_exist_or_hand_on_are_refused():
    with pytest.raises(InputError, match="no layer 'conv4'"):
        plan_of(["conv4"])
    model = load_model("tiny:subject")
    model.net.act1 = torch.nn.Identity()
    with pytest.raises(InputError, match="layer 'act1' only hands on what another layer returns"):
        plan_of(["act1"], model=model)


def test_an_odd_margin_is_no_obstacle():
    (found,) = plan_of(["act2"], canvas=35, sizes=sizes(singles=2))
    assert len(channels_of(found, "single")) == 2


def test_a_composite_of_one_is_refused():
    with pytest.raises(InputError, match="a composite has at least 2 components, not 1"):
        plan(planted_activations({}), sizes(singles=3, composites={1: 1}))


def textures():
    """Six channels: 0 and 3 similar, 1 and 4 nearly so, 2 against 5; and one that is constant."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(400, 3, generator=generator)
    noise = torch.randn(400, 3, generator=generator)
    mixed = torch.stack(
        [base[:, 0] + 0.1 * noise[:, 0], base[:, 1] + noise[:, 1], -base[:, 2] + noise[:, 2]], 1
    )
    return torch.cat([base, 3.0 * mixed + 7.0, torch.full((400, 1), 0.1)], 1)


def test_correlations_are_numpys():
    found = channel_correlations(textures())
    expected = np.corrcoef(textures()[:, :6].double().numpy(), rowvar=False)
    np.testing.assert_allclose(found[:6, :6].numpy(), expected, atol=1e-12)
    assert found[6].isnan().all()
    assert found[:, 6].isnan().all()


def most_similar(*args, **kwargs):
    return [pair[:2] for pair in similar_and_dissimilar(*args, 0, **kwargs)[0]]


def test_the_most_similar_pairs_share_no_channel():
    assert most_similar(textures(), 2) == [(0, 3), (1, 4)]
    assert most_similar(textures(), 1, channels=[1, 2, 4, 5]) == [(1, 4)]
    assert most_similar(textures(), 0) == []


def test_pairs_share_no_channel():
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(50, 60, generator=generator)
    pairs = most_similar(wide, 30)
    assert sorted(c for pair in pairs for c in pair) == list(range(60))
    correlation = channel_correlations(wide)
    values = [correlation[pair].item() for pair in pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(correlation.fill_diagonal_(-1).max().item())


def test_similar_and_dissimilar_pairs_are_the_two_ends():
    similar, dissimilar = similar_and_dissimilar(textures(), 1, 1)
    expected = channel_correlations(textures())
    assert similar == [ChannelPair(0, 3, expected[0, 3].item())]
    assert dissimilar == [ChannelPair(2, 5, expected[2, 5].item())]
    similar, dissimilar = similar_and_dissimilar(torch.randn(20, 12), 3, 3)
    assert len({c for pair in similar + dissimilar for c in pair[:2]}) == 12
    assert [p.correlation for p in similar] == sorted(
        (p.correlation for p in similar), reverse=True
    )
    assert [p.correlation for p in dissimilar] == sorted(p.correlation for p in dissimilar)


@pytest.mark.parametrize(
    ("activations", "count", "message"),
    [
        (textures(), 4, "4 pairs .* only 3 are left"),
        (torch.zeros(2, 5), 1, r"at least 3 images, got \[2, 5\]"),
        (torch.zeros(5), 1, r"got \[5\]"),
        (torch.full((4, 2), torch.nan), 1, "must be finite"),
    ],
)
def test_unfit_activations_are_refused(activations, count, message):
    with pytest.raises(InputError, match=message):
        most_similar(activations, count)


@pytest.mark.parametrize("channels", [[0, 7], [-1, 3]])
def test_channels_that_are_not_there_are_refused(channels):
    with pytest.raises(InputError, match="but there are activations of 7: 0 to 6"):
        most_similar(textures(), 1, channels=channels)
