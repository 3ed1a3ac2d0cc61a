"""Embeddings alone: NumPy or torch, centred or named, finite or refused."""

import warnings

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import polylight
from polylight import InputError, cluster, embed, score_embeddings
from polylight.embedding.embedder import Embedder
from polylight.networks import load_model
from polylight.scoring import polysemanticity_score


def modes(sizes, dims=32, spread=0.05, common=0.0):
    """Clusters at right angles, with a mean that all share."""
    rng = np.random.default_rng(1)
    centres = np.eye(dims)[np.repeat(np.arange(len(sizes)), sizes)]
    return centres + rng.normal(0, spread, centres.shape) + common


def test_two_obvious_clusters_score_a_half():
    x = modes((8, 8))
    found = score_embeddings(x, center=0)
    assert found.score == pytest.approx(0.5, abs=0.03)
    assert found.clusters.k == 2
    assert found.k_eff == pytest.approx(2, abs=0.1)
    assert found.interval[0] <= found.score <= found.interval[1]
    labels = found.clusters.labels
    assert {tuple(set(labels[:8])), tuple(set(labels[8:]))} == {(0,), (1,)}
    assert found.clusters.shares.sum() == pytest.approx(1)
    expected = polysemanticity_score(torch.tensor(x)[None])
    assert found.score == expected.score.item()


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, lambda x: torch.tensor(x).float()])
def test_numpy_and_torch_are_the_same(make):
    x, activations = modes((5, 9)), np.linspace(1, 2, 14)
    one = score_embeddings(x, activations, center=0)
    other = score_embeddings(make(x), make(activations), center=make(np.zeros(32)))
    assert other.score == pytest.approx(one.score, abs=1e-6)
    grown = score_embeddings(torch.tensor(x, requires_grad=True), activations, center=0)
    assert grown.score == one.score


def test_a_common_mean_is_named_and_taken_away():
    raw = modes((8, 8), common=3.0)
    with pytest.warns(UserWarning, match=r"100% of what these embeddings hold .* Give center="):
        hidden = score_embeddings(raw)
    assert hidden.score < 0.05
    centred = score_embeddings(raw, center=np.full(32, 3.0))
    assert centred.score == pytest.approx(0.5, abs=0.03)
    with pytest.warns(UserWarning, match="common to all"):
        assert cluster(raw).k == cluster(raw, center=0).k
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Two unrelated features have a common half of their own.
        assert score_embeddings(modes((8, 8))).clusters.k == 2
        score_embeddings(modes((16,)), center=0)


def test_clusters_are_those_of_the_score():
    x = modes((3, 9, 6))
    found, scored = cluster(x, max_clusters=5, seed=3), score_embeddings(x, max_clusters=5, seed=3)
    assert found.k == 3
    assert np.bincount(found.labels).tolist() == [9, 6, 3]
    assert found.bic.shape == (5,)
    assert found.separation > 4
    assert np.array_equal(found.labels, scored.clusters.labels)
    assert cluster(modes((16,)), center=0).k == 1


def test_activations_weigh_images_above_their_baseline():
    x = modes((8, 8))
    activations = np.repeat([-1.0, -5.0], 8)
    with pytest.raises(InputError, match=r"none of the activations, -5 to -1, is above the base"):
        score_embeddings(x, activations, center=0)
    even = score_embeddings(x, activations, center=0, baseline=-9.0)
    assert even.clusters.shares == pytest.approx([2 / 3, 1 / 3])
    alone = score_embeddings(x, activations, center=0, baseline=-3.0)
    assert alone.score < 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embeddings": np.full((4, 3), np.nan)}, r"hold 12 values that are NaN or infinite"),
        ({"embeddings": np.diag([1, 1, np.inf, 1])}, r"hold 1 value that are NaN or infinite"),
        ({"embeddings": np.zeros(4)}, r"\[images, dimensions\], .* got \[4\]"),
        ({"embeddings": np.zeros((0, 4))}, r"neither of them 0"),
        ({"embeddings": np.array([["a"]])}, r"have to be numbers"),
        ({"center": np.zeros(3)}, r"center has to be \[4\]"),
        ({"center": np.nan}, r"center hold"),
        ({"activations": np.ones(3)}, r"activations have to be \[4\]"),
        ({"activations": [1, 1, 1, np.inf]}, r"activations hold 1 value that"),
        ({"max_clusters": 0}, r"max_clusters has to be from 1 to 127"),
        ({"selection": "bik"}, r"selection 'bik'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_one_error(given, message):
    with pytest.raises(InputError, match=message):
        score_embeddings(**{"embeddings": np.eye(4), "center": 0} | given)


def test_embed_is_what_a_run_stores():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    model = load_model("tiny:embedder")
    floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = torch.cat([Embedder(model)(part) for part in floats.split(32)]).numpy()
    net = tiny.embedder().train()
    for given in (images, torch.from_numpy(images), images.transpose(0, 3, 1, 2), floats):
        assert np.array_equal(embed(given, embedder=net, device="cpu"), expected)
    assert np.array_equal(embed(images, embedder="tiny:embedder", device="cpu"), expected)
    assert net.training
    pictures = [Image.fromarray(image) for image in images]
    assert np.allclose(embed(pictures, embedder=net, device="cpu"), expected, atol=1e-6)
    # Of any sizes and modes.
    mixed = [Image.new("L", (40, 70), 90), Image.new("RGBA", (100, 50), (9, 9, 9, 255))]
    assert embed(mixed, embedder=net, device="cpu").shape == (2, 20)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"no images"),
        (np.zeros((2, 32, 32), np.uint8), r"got torch.uint8 \[2, 32, 32\]"),
        (np.zeros((2, 32, 40, 3), np.uint8), r"have to be square, got \[32, 40\]"),
        (np.full((1, 3, 8, 8), 255.0), r"in \[0, 1\], got 255 to 255"),
        (np.full((1, 3, 8, 8), np.nan), r"images hold 192 values"),
        (["a.jpg"], r"numbers"),
    ],
)
def test_images_that_cannot_be_embedded_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        embed(images, embedder=tiny.embedder(), device="cpu")


def test_every_name_of_the_package_is_there():
    assert all(getattr(polylight, name) is not None for name in polylight.__all__)
