import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import polylight
from polylight import reference as reference_module
from polylight.ascent.augmentation import Augmentation
from polylight.ascent.engine import Engine
from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.ascent.settings import Ascent
from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.networks import Layer, list_layers, load_model
from polylight.reference import (
    ReferenceSettings,
    cache_dir,
    find_reference,
    layer_statistics,
    load_or_make_reference,
    make_reference,
    sample_neurons,
)

CPU = torch.device("cpu")
RECIPE = ReferenceSettings(
    num_images=24,
    parametrization=Parametrization(size=16),
    augmentation=Augmentation(jitter=4),
    ascent=Ascent(max_steps=6, patience=0, repulsion=0.0),
)


@pytest.fixture(scope="module")
def models():
    return load_model("tiny:subject"), load_model("tiny:embedder")


@pytest.fixture(scope="module")
def made(models):
    """The reference, and the images it was made from."""
    seen = []

    def spy(subject, images, *rest):
        seen.append(images)
        return layer_statistics(subject, images, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_module, "layer_statistics", spy)
        told = []
        found = make_reference(*models, RECIPE, CPU, lambda *counts: told.append(counts))
    count = len(seen[0])
    assert told == [(i + 1, count) for i in range(count)]
    return found, seen[0]


def test_the_frame_is_centred_by_the_images(made, models):
    reference, images = made
    assert images.shape[1:] == (3, 16, 16)
    assert len(images) > 15
    points = Embedder(models[1])(images).double().numpy()
    np.testing.assert_allclose(reference.mean.numpy(), points.mean(0), rtol=1e-4, atol=1e-6)


def test_layer_statistics_are_those_of_the_images(made, models):
    reference, images = made
    assert list(reference.layer_std) == [layer.name for layer in list_layers(models[0], 16)]
    x = models[0].preprocess(images)
    with torch.no_grad():
        for name, layer in models[0].net.named_children():
            x = layer(x.clone())
            pooled = x.flatten(2).mean(2).double() if x.ndim > 2 else x.double()
            std = pooled.std(0)
            std = std.clamp_min(0.01 * std.max())
            torch.testing.assert_close(reference.layer_std[name], std.float(), rtol=1e-4, atol=1e-6)


def test_the_start_of_a_layer_is_its_mean_over_images_that_ascents_could_start_from(made, models):
    reference, _ = made
    keys = torch.arange(400) * 7919
    images = ImageDecoder(RECIPE.parametrization)(RECIPE.parametrization.initial_latents(keys))
    x = models[0].preprocess(images)
    with torch.no_grad():
        for name, layer in models[0].net.named_children():
            x = layer(x.clone())
            pooled = x.flatten(2).mean(2).double() if x.ndim > 2 else x.double()
            # Two samples of the same: apart by their standard errors.
            error = pooled.std(0) * (1 / len(keys) + 1 / RECIPE.num_images) ** 0.5
            apart = (reference.layer_start[name] - pooled.mean(0)).abs()
            assert (apart <= 5 * error + 1e-5).all(), name


def test_statistics_are_of_finite_values_and_never_zero():
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    mean, std = layer_statistics(load_model("tiny:dying"), images / 255, 8, CPU)
    for name in mean:
        assert mean[name].isfinite().all(), name
        assert (std[name] > 0).all(), name
        assert std[name].isfinite().all(), name
    conv = load_model("tiny:dying").net.conv(images / 127.5 - 1)[:, 2].mean((1, 2))
    awake = conv[conv > 0]
    assert 0 < len(awake) < 20
    assert mean["fragile"][2].item() == pytest.approx(awake.mean().item(), rel=1e-4)
    assert std["fragile"][2].item() == pytest.approx(awake.std().item(), rel=1e-3)


def assert_same(one, other):
    assert one.key == other.key
    assert torch.equal(one.mean, other.mean)
    assert set(one.layer_start) == set(other.layer_start)
    for name in one.layer_start:
        assert torch.equal(one.layer_start[name], other.layer_start[name])
        assert torch.equal(one.layer_std[name], other.layer_std[name])
    assert set(one.input_mean) == set(other.input_mean) == set(other.input_std)
    for name in one.input_mean:
        assert torch.equal(one.input_mean[name], other.input_mean[name])
        assert torch.equal(one.input_std[name], other.input_std[name])


def test_the_order_in_which_neurons_run_changes_nothing(made, models, monkeypatch):
    class Backwards(Engine):
        def turn(self, neurons, *rest):
            self.source = getattr(self, "source", None) or iter(list(neurons)[::-1])
            return super().turn(self.source, *rest)

    monkeypatch.setattr(reference_module, "Engine", Backwards)
    assert_same(make_reference(*models, RECIPE, CPU), made[0])


def test_a_reference_is_made_once_and_found_again(made, models, monkeypatch, tmp_path):
    monkeypatch.setenv("POLYLIGHT_CACHE", str(tmp_path))
    assert find_reference(*models, RECIPE) is None
    first = load_or_make_reference(*models, RECIPE, CPU)
    assert_same(first, made[0])
    monkeypatch.setattr(reference_module, "make_reference", None)
    # A score must not depend on whether its reference was made or read.
    assert_same(load_or_make_reference(*models, RECIPE, CPU), first)
    other = dataclasses.replace(RECIPE, num_images=25)
    assert find_reference(*models, other) is None


def test_the_cache_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("POLYLIGHT_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("POLYLIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/polylight")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/polylight")


@pytest.mark.parametrize("damage", ["empty", "cut short", "of another", "no reference"])
def test_a_damaged_reference_is_named_and_made_anew(
    made, models, tmp_path, damage, monkeypatch, caplog
):
    monkeypatch.setenv("POLYLIGHT_CACHE", str(tmp_path))
    path = tmp_path / "references" / f"{made[0].key}.safetensors"
    made[0].save(path)
    whole = path.read_bytes()
    if damage == "of another":
        dataclasses.replace(made[0], key="0" * 32).save(path)
    elif damage == "no reference":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else whole[:-1])
    monkeypatch.setattr(reference_module, "make_reference", lambda *_: made[0])
    assert load_or_make_reference(*models, RECIPE, CPU) is made[0]
    assert str(path) in caplog.text
    assert "made anew" in caplog.text
    assert path.read_bytes() == whole


def test_what_is_made_is_used_where_it_cannot_be_kept(made, models, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYLIGHT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(reference_module, "make_reference", lambda *_: made[0])
    assert load_or_make_reference(*models, RECIPE, CPU) is made[0]
    assert "cannot be kept" in caplog.text
    assert "POLYLIGHT_CACHE" in caplog.text


def test_without_a_home_directory_there_is_a_cache(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("POLYLIGHT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(reference_module, "gettempdir", lambda: str(tmp_path))
    assert cache_dir().parent == tmp_path


def test_the_key_changes_with_all_that_the_reference_depends_on(models):
    subject, embedder = models
    replace = dataclasses.replace
    same = replace(subject, name="another", source="checkpoint", input_size=64)
    assert RECIPE.key(same, embedder) == RECIPE.key(subject, embedder)
    assert RECIPE.key(subject, replace(embedder, name="another")) == RECIPE.key(subject, embedder)
    keys = [
        RECIPE.key(subject, embedder),
        RECIPE.key(embedder, subject),
        RECIPE.key(replace(subject, weights_hash="0"), embedder),
        RECIPE.key(replace(subject, mean=(0.4, 0.5, 0.5)), embedder),
        RECIPE.key(replace(subject, std=(0.4, 0.5, 0.5)), embedder),
        RECIPE.key(subject, replace(embedder, weights_hash="0")),
        RECIPE.key(subject, replace(embedder, mean=(0.4, 0.5, 0.5))),
        RECIPE.key(subject, replace(embedder, std=(0.4, 0.5, 0.5))),
        RECIPE.key(subject, replace(embedder, input_size=64)),
    ]
    changes = [
        {"num_images": 25},
        {"parametrization": replace(RECIPE.parametrization, decay=1.5)},
        {"augmentation": replace(RECIPE.augmentation, rotate=6.0)},
        {"ascent": replace(RECIPE.ascent, learning_rate=0.06)},
    ]
    keys += [replace(RECIPE, **change).key(subject, embedder) for change in changes]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


def test_impossible_recipes_are_refused():
    with pytest.raises(InputError, match="the reference needs at least 2 images, not 1"):
        ReferenceSettings(num_images=1)


def test_the_sample_is_even_over_convolution_and_linear_layers():
    layers = [
        Layer("a", "Conv2d", 10**6, (4, 4)),
        Layer("b", "ReLU", 10**6, (4, 4)),
        Layer("c", "Conv2dSame", 10**5, (4, 4)),
        Layer("d", "Linear", 10**4, ()),
    ]
    neurons = sample_neurons(layers, 40)
    assert len(neurons) == 40
    names = [n.components[0].layer for n in neurons]
    assert [k for k, _ in itertools.groupby(names)] == ["a", "c", "d"]
    assert sorted(names.count(k) for k in "acd") == [13, 13, 14]
    width = {"a": 10**6, "c": 10**5, "d": 10**4}
    places = torch.tensor([n.components[0].channel / width[n.components[0].layer] for n in neurons])
    assert places.min() < 0.15
    assert places.max() > 0.85
    assert places.max() < 1
    assert neurons == sample_neurons(layers, 40)


def test_a_neuron_is_sampled_once():
    neurons = sample_neurons([Layer("a", "Conv2d", 3, (4, 4))], 64)
    assert sorted(n.components[0].channel for n in neurons) == [0, 1, 2]


def installed():
    return sorted((Path(polylight.__file__).parent / "references").glob("*.safetensors"))


@pytest.mark.parametrize("path", installed(), ids=lambda path: path.stem[:8])
def test_an_installed_reference_loads(path):
    reference = Reference.load(path)
    assert reference.key == path.stem
    for name, std in reference.layer_std.items():
        assert (std > 0).all()
        assert std.isfinite().all()
        assert reference.layer_start[name].isfinite().all()
    assert reference.input_mean.keys() == reference.input_std.keys()
    assert len(reference.input_mean) > 30
    for name, std in reference.input_std.items():
        assert (std > 0).all()
        assert std.isfinite().all()
        assert reference.input_mean[name].isfinite().all()


def test_the_packaged_networks_have_a_reference():
    subject, embedder = load_model("efficientnet_lite0"), load_model("efficientnet_lite2")
    key = ReferenceSettings().key(subject, embedder)
    assert key in [path.stem for path in installed()]
    found = find_reference(subject, embedder, ReferenceSettings())
    assert found is not None
    assert found.mean.shape == (1280,)
    layers = list_layers(subject, 128)
    assert {x.name: x.channels for x in layers} == {k: len(v) for k, v in found.layer_start.items()}
