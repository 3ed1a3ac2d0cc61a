import functools
import itertools
import logging

import pytest
import torch
import torchmetrics.image.lpip
import torchvision
from tiny_runs import assert_same, engine, run
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

import polylight
from polylight.ascent.scheduler import Rounds
from polylight.embedding.lpips import SMALLEST, Lpips, MeanDistance, load_lpips


@functools.cache
def random_backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.AlexNet()


@pytest.fixture
def random_alexnet(monkeypatch):
    """LPIPS of torchmetrics with a backbone of fixed random weights: nothing is downloaded."""
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: random_backbone())


def pictures(count, side=40):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def expected(one, other):
    return learned_perceptual_image_patch_similarity(one[None], other[None], normalize=True)


def test_distances_are_those_of_torchmetrics(random_alexnet):
    images = pictures(4)
    lpips = load_lpips(32)
    assert isinstance(lpips, Lpips)
    features = lpips.features(images)
    first = [layer[:1] for layer in features]
    found = lpips.distances(first, features)
    assert found[0] == 0
    for distance, image in zip(found[1:], images[1:], strict=True):
        assert distance > 0.001
        torch.testing.assert_close(distance, expected(images[0], image), rtol=1e-4, atol=1e-6)


def test_the_mean_over_pairs_grows_image_by_image(random_alexnet):
    images, batch = pictures(5), 4
    mean = MeanDistance(load_lpips(32))
    seen = 0
    # A batch may be larger than what is added of it.
    for count in (1, 2, 2):
        padded = torch.zeros(batch, *images.shape[1:])
        padded[:count] = images[seen : seen + count]
        found = mean.add(padded, count)
        seen += count
        pairs = [expected(a, b) for a, b in itertools.combinations(images[:seen], 2)]
        wanted = torch.stack(pairs).mean() if pairs else torch.zeros(())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_smallest_images_are_the_smallest(random_alexnet):
    lpips = load_lpips(32)
    assert len(lpips.features(pictures(1, SMALLEST))) == 5
    with pytest.raises(RuntimeError):
        lpips.features(pictures(1, SMALLEST - 1))


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("invalid hash")])
def test_without_weights_a_warning_says_what_is_used(monkeypatch, caplog, error):
    def cannot(**_):
        raise error

    monkeypatch.setattr(torchmetrics.image.lpip, "LearnedPerceptualImagePatchSimilarity", cannot)
    with caplog.at_level(logging.WARNING, "polylight"):
        assert load_lpips(32) is None
    assert "the elbow is that of cosine similarities" in caplog.text
    assert str(error) in caplog.text


def test_the_elbow_follows_lpips_of_all_images_and_no_other_neuron(random_alexnet):
    rounds = functools.partial(Rounds, round_size=2, min_images=2, max_images=6, patience=1)
    lpips = load_lpips(32)

    def scored(tolerance, neurons):
        made = engine(neurons, rounds=rounds(tolerance=tolerance), lpips=lpips)
        values = {}
        while not made.done:
            active = list(made.scheduler.active)
            for neuron in made.turn():
                values[str(neuron.neuron)] = neuron
            values |= {f"{a.neuron} changes": list(a.similarities) for a in active}
        return values

    every = scored(0.0, ["conv3:1", "conv3:2"])
    neuron, changes = every["conv3:1"], every["conv3:1 changes"]
    assert (neuron.stop_reason, len(neuron.images), len(changes)) == ("max_images", 6, 3)
    images = neuron.images / 255
    for count, value in zip((2, 4, 6), changes, strict=True):
        pairs = [expected(a, b) for a, b in itertools.combinations(images[:count], 2)]
        assert value == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-4)
    first = abs(changes[1] - changes[0])
    early = scored(1.01 * first, ["conv3:1"])["conv3:1"]
    assert (early.stop_reason, len(early.images)) == ("elbow", 4)
    assert torch.equal(early.images, neuron.images[:4])
    assert len(scored(0.99 * first, ["conv3:1"])["conv3:1"].images) == 6


def test_how_similar_images_are_does_not_change_them(random_alexnet):
    rounds = Rounds(round_size=2, min_images=4, max_images=4)
    plain = run(["conv3:1"], rounds=rounds)["conv3:1"]
    assert_same(plain, run(["conv3:1"], rounds=rounds, lpips=load_lpips(32))["conv3:1"])


def test_images_of_other_channels_are_compared_as_pictures(random_alexnet):
    net = nn.Sequential(nn.Conv2d(5, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2))
    found = polylight.visualize(
        net,
        "2:1",
        images=3,
        min_images=2,
        elbow="lpips",
        max_steps=2,
        pool_size=2,
        input_size=32,
        image_size=32,
        progress=False,
    )
    assert found["2:1"].images.shape[0] in (2, 3)
