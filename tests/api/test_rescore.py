"""Stored images, scored again: the same to the bit where nothing changes."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from example_rows import same

import polylight
from polylight import InputError
from polylight.ascent.engine import Engine
from polylight.embedding.reference import Reference
from polylight.kernels import stream_key
from polylight.run.store import RunStore, read_rows
from polylight.scoring import polysemanticity_score

TINY = {
    "images": 12,
    "image_size": 32,
    "max_steps": 12,
    "pool_size": 6,
    "reference_images": 24,
    "device": "cpu",
}
NEURONS = ["act3:0-5", "conv2:3", "max(act3:1,conv1:4)", "-act3:2", "conv1:0"]


@pytest.fixture(scope="module")
def run():
    return polylight.score(tiny.subject(), NEURONS, embedder=tiny.embedder(), **TINY)


@pytest.fixture(scope="module")
def dying():
    """Neurons that a rectifier holds at zero for some images, and that are not finite."""
    return polylight.score(tiny.dying(), "act:*", embedder=tiny.embedder(), **TINY)


@pytest.fixture(autouse=True)
def _nothing_climbs(monkeypatch, run, dying):
    monkeypatch.setattr(Engine, "turn", lambda *_: pytest.fail("an image climbs"))


@pytest.mark.parametrize("which", ["run", "dying"])
def test_unchanged_settings_give_the_stored_scores_to_the_bit(which, request):
    given = request.getfixturevalue(which)
    again = polylight.rescore(given)
    before = {row.neuron: row for row in read_rows(given.run_dir)}
    assert again.neurons == given.neurons
    for row in read_rows(again.run_dir):
        assert same(row, before[row.neuron])
        assert row.q_value == before[row.neuron].q_value
    assert again.manifest.settings == given.manifest.settings
    assert again.run_dir != given.run_dir


def test_a_setting_changes_what_it_says(run, tmp_path):
    other = polylight.rescore(run.run_dir, max_clusters=3, run_dir=tmp_path / "three")
    assert all(len(row.bic) == 3 for row in read_rows(tmp_path / "three"))
    assert other.manifest.settings["scoring"]["max_clusters"] == 3
    assert other.manifest.status == "finished"
    expected = {row.neuron: row for row in read_rows(run.run_dir)}
    for row in read_rows(other.run_dir):
        assert row.image == expected[row.neuron].image
        assert np.array_equal(row.label >= 0, expected[row.neuron].label >= 0)
        # Rows have the same criteria as far as they go.
        assert np.array_equal(row.bic, expected[row.neuron].bic[:3], equal_nan=True)


def test_another_selection_is_that_of_the_function(run):
    reference = Reference.load(run.run_dir / "reference.safetensors")
    rescored = polylight.rescore(run, selection="xmeans", max_clusters=4)
    for row in read_rows(rescored.run_dir):
        views = reference.join(torch.tensor(row.embedding), torch.tensor(row.layer_input))
        found = polysemanticity_score(
            views[None],
            torch.tensor(row.activation)[None],
            valid=torch.tensor(row.label >= 0)[None],
            keys=torch.tensor([stream_key(0, row.neuron, "cluster")]),
            baseline=torch.tensor([row.baseline], dtype=torch.float32),
            selection="xmeans",
            k_max=4,
        )
        assert row.score == pytest.approx(found.score.item(), abs=1e-12)
        assert row.label.tolist() == found.labels[0].tolist()


def test_the_first_images_alone(run):
    fewer = polylight.rescore(run, images=8)
    before = {row.neuron: row for row in read_rows(run.run_dir)}
    for row in read_rows(fewer.run_dir):
        whole = before[row.neuron]
        assert row.num_images == 8
        assert row.image == whole.image[:8]
        assert np.array_equal(row.embedding, whole.embedding[:8])
        assert row.label.shape == (8,)
    assert fewer.manifest.settings["rounds"]["max_images"] == 8
    # More than there are is all of them.
    assert len(polylight.rescore(run, images=99)["act3:0"].images) == 12


def test_strength_decides_which_images_count(run, dying):
    strict, lax = polylight.rescore(run, strength=1.0), polylight.rescore(run, strength=0.01)
    for neuron in run:
        kept = [(found[neuron.name].labels >= 0) for found in (strict, run, lax)]
        assert not (kept[0] & ~kept[1]).any()
        assert not (kept[1] & ~kept[2]).any()
    # An image at which a rectified neuron is silent never counts.
    for neuron in polylight.rescore(dying, strength=0.01):
        assert not ((neuron.activations <= 0) & (neuron.labels >= 0)).any()


def test_a_rescored_run_keeps_what_it_was_made_from(run, tmp_path):
    again = polylight.rescore(run, restarts=4)
    again.save(tmp_path / "kept")
    assert again.manifest.subject == run.manifest.subject
    assert np.array_equal(again.center, run.center)
    assert len(polylight.rescore(tmp_path / "kept", images=4)) == len(run)


def test_what_cannot_be_rescored_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"selection 'bik' does not exist; nearest: bic"):
        polylight.rescore(run, selection="bik")
    with pytest.raises(InputError, match=r"images has to be at least 1, got 0"):
        polylight.rescore(run, images=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"is not empty and holds no run"):
        polylight.rescore(run, run_dir=tmp_path)
    store = RunStore(tmp_path / "bare")
    store.append([dataclasses.replace(read_rows(run.run_dir)[0], neuron="act3:9")])
    store.close()
    with pytest.raises(InputError, match=r"keeps no manifest.json or no reference"):
        polylight.rescore(tmp_path / "bare")
