"""``configs/paper.yaml`` on LeNet-5 and digits: Alic et al. (2025), as far as it runs here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from test_bad_input import refused
from test_fit import TINY, same

from polylight.cli import main
from polylight.clustering import cluster
from polylight.embedding.embedder import Embedder
from polylight.kernels import stream_key
from polylight.networks import load_model
from polylight.neurons import Component, Neuron
from polylight.photos.store import list_pairs
from polylight.run.manifest import read_manifest
from polylight.run.png import decode_images
from polylight.run.store import read_rows
from polylight.scoring import paper_score

ROOT = Path(__file__).parents[2]
SMALL = {
    "--model.embedder": "tiny:embedder",
    "--model.max_steps": "8",
    "--model.min_images": "4",
    "--model.max_images": "6",
    "--model.pool_size": "8",
    "--model.restarts": "4",
    "--trainer.accelerator": "cpu",
}


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    """The example, run on digits: its folder, and its share of right answers."""
    folder = tmp_path_factory.mktemp("lenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "examples")
        import lenet as example

        where = {"out": str(folder / "lenet.safetensors"), "photos": str(folder / "photos")}
        right = example.train("digits", num_photos=12, epochs=4, **where)
        yield folder, right


@pytest.fixture
def backbone(monkeypatch):
    """Random weights in place of those that would be downloaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.AlexNet()
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: net)


@pytest.fixture
def no_backbone(monkeypatch):
    def alexnet(weights):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "alexnet", alexnet)


def fit(run, lenet, *more, neurons="conv2:0-2", **changes):
    where = ["--config", str(ROOT / "configs" / "paper.yaml"), "--run_dir", str(run)]
    subject = ["--model.subject", "lenet:lenet5"]
    subject += ["--model.subject_weights", str(lenet[0] / "lenet.safetensors")]
    settings = [word for option in (SMALL | changes).items() for word in option]
    return main(["fit", *where, *subject, "--data.neurons", neurons, *settings, *more])


def test_the_example_learns(lenet):
    folder, right = lenet
    assert right > 0.5
    assert len(list((folder / "photos").iterdir())) == 12


def test_cifar10_that_cannot_be_had_is_replaced_by_digits(lenet, monkeypatch, tmp_path, caplog):
    import lenet as example

    def cannot(*_, **__):
        raise RuntimeError("file not found or corrupted")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cannot)
    found = example.train(epochs=1, optimizer="sgd", out=str(tmp_path / "net.safetensors"))
    assert 0 <= found <= 1
    assert "CIFAR-10 cannot be had (file not found or corrupted)" in caplog.text


def test_the_configuration_is_the_paper(lenet, backbone, tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(run, lenet, "--data.photos", str(lenet[0] / "photos")) == 0
    manifest = read_manifest(run)
    assert manifest.settings["elbow"] == "lpips"
    assert manifest.settings["embedding"] == "plain"
    assert manifest.settings["reference"] is None is manifest.reference_hash
    assert manifest.settings["ascent"]["repulsion"] == 0
    assert manifest.settings["rounds"]["tolerance"] == 0.02
    assert manifest.settings["rounds"]["patience"] == 1
    assert manifest.settings["scoring"]["reported_score"] == "score_paper"
    rows = read_rows(run)
    embed = Embedder(load_model("tiny:embedder"), plain=True)
    for row in rows:
        assert 4 <= row.num_images <= 6
        assert row.layer_input.shape == (row.num_images, 0)
        images = torch.from_numpy(decode_images(row.image))
        np.testing.assert_allclose(row.embedding, embed(images), rtol=1e-4, atol=1e-5)
        # The score that the row has is that of its own clusters.
        points = torch.from_numpy(row.embedding.copy())[None]
        labels, valid = torch.from_numpy(row.label.copy()).long()[None], torch.ones_like(points)
        valid = valid[..., 0].bool()
        neuron = Neuron((Component("conv2", row.channel),))
        found = cluster(
            points,
            valid=valid,
            keys=torch.tensor([stream_key(0, neuron, "cluster")]),
            k_max=8,
            restarts=4,
        )
        assert row.k == found.k.item()
        assert torch.equal(labels, found.labels)
        score = paper_score(points, labels, torch.tensor([row.k]), valid).item()
        assert row.score_paper == pytest.approx(score, abs=1e-9)
    capsys.readouterr()
    main(["show", str(run), "--json"])
    shown = json.loads(capsys.readouterr().out)
    scores = [row["score_paper"] for row in shown]
    assert scores == sorted(scores, reverse=True)
    strongest = {r.neuron: r.activation for pair in list_pairs(run) for r in pair.rankings()}
    for row, values in ((r, next(v for v in shown if v["neuron"] == r.neuron)) for r in rows):
        above = row.activation > max(strongest[row.neuron], default=-np.inf)
        assert values["above_photos"] == pytest.approx(above.mean())
    # Photos are embedded as images are.
    (kept,) = next(iter(list_pairs(run))).stream(["embedding"], 99)
    assert len(kept["embedding"][0]) == 20


def test_nothing_is_made_that_nothing_is_compared_by(lenet, no_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYLIGHT_CACHE", str(tmp_path / "cache"))
    assert fit(tmp_path / "plain", lenet) == 0
    assert not (tmp_path / "cache").exists()
    # What repels is scaled by a reference, though images are compared without one.
    pushed = {"--model.repulsion": "4", "--model.explore": "0.5", "--model.reference_images": "16"}
    assert fit(tmp_path / "pushed", lenet, neurons="conv2:0", **pushed) == 0
    assert len(list((tmp_path / "cache" / "references").iterdir())) == 1
    assert read_manifest(tmp_path / "pushed").settings["reference"]


def test_without_its_weights_lpips_is_replaced_and_the_manifest_says_so(
    lenet, no_backbone, tmp_path, caplog, capsys
):
    run = tmp_path / "run"
    assert fit(run, lenet) == 0
    assert read_manifest(run).settings["elbow"] == "cosine"
    assert "the elbow is that of cosine similarities" in caplog.text
    before = {row.neuron: row for row in read_rows(run)}
    # The same as if it had been asked for, and as alone.
    assert fit(tmp_path / "own", lenet, **{"--model.elbow": "cosine"}) == 0
    assert all(same(before[row.neuron], row) for row in read_rows(tmp_path / "own"))


def test_weights_that_appear_later_do_not_continue_a_run(lenet, backbone, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "alexnet", _cannot)
        assert fit(run, lenet, neurons="conv2:0") == 0
    assert fit(run, lenet, neurons="conv2:0-1") == 2
    assert 'elbow: "cosine" -> "lpips"' in capsys.readouterr().err
    # Where every neuron has as many images there is no elbow, and nothing is loaded for it.
    fixed = {"--model.min_images": "6", "--model.elbow_patience": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "alexnet", _never)
        assert fit(tmp_path / "fixed", lenet, neurons="conv2:0", **fixed) == 0
    assert read_manifest(tmp_path / "fixed").settings["elbow"] is None


def _cannot(weights):
    raise OSError("no network")


def _never(weights):
    raise AssertionError("loaded though nothing is compared by it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.elbow", "ssim"], "elbow"),
        (["--model.embedding", "raw"], "embedding"),
        (["--model.reported_score", "k"], "reported_score"),
        (
            ["--model.elbow", "lpips", "--model.min_images", "3", "--model.image_size", "28"],
            "LPIPS compares images of at least 31 pixels, not of 28",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message, tmp_path, capsys):
    words = ["fit", "--run_dir", str(tmp_path / "run"), "--data.neurons", "conv2:0"]
    assert message in refused(capsys, tmp_path / "run", *words, *TINY, *changes)


@pytest.mark.parametrize(
    "setting", [{"embedding": "plain"}, {"reported_score": "score_paper", "repulsion": 0}]
)
def test_validate_compares_centred_embeddings(setting, tmp_path, capsys):
    subject = {"subject": "tiny:subject", "embedder": "tiny:embedder", "layers": ["conv2"]}
    words = ["validate", "--run_dir", str(tmp_path / "run"), "--subjects", json.dumps([subject])]
    words += ["--conditions", json.dumps({"alic": setting})]
    message = refused(capsys, tmp_path / "run", *words)
    assert "condition 'alic' cannot be used" in message
