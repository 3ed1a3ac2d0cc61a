"""Runs over directions and latents: from the command line, from Python, and continued."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file

import polylight
from polylight.cli import main
from polylight.embedding.reference import Reference
from polylight.networks.live import model_from_module
from polylight.networks.subject import Subject
from polylight.run.manifest import read_manifest
from polylight.run.png import decode_png
from polylight.run.store import REFERENCE, read_rows

SETTINGS = {
    "image_size": 32,
    "max_steps": 12,
    "round_size": 4,
    "pool_size": 6,
    "reference_images": 24,
}
SAE, UNIT = 'sae(conv2,"sae.safetensors")', 'direction(conv2,"unit.safetensors")'


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 40, generator=generator)
    save_file({"W_enc": weight, "b_enc": torch.zeros(40)}, "sae.safetensors", {"k": "4"})
    save_file({"vectors": torch.eye(16)}, "unit.safetensors")


def fit(run_dir, neurons):
    words = ["--model.subject", "tiny:subject", "--model.embedder", "tiny:embedder"]
    words += [w for k, v in SETTINGS.items() for w in (f"--model.{k}", str(v))]
    words += ["--model.max_images", "8", "--trainer.accelerator", "cpu", "--run_dir", run_dir]
    return main(["fit", *words, "--data.neurons", json.dumps(neurons)])


def test_directions_and_latents_are_scored_as_neurons_are(capsys):
    assert fit("run", [f"{SAE}[0-2]", f"{UNIT}[3,5]", f"max(conv2:3,{SAE}[7])"]) == 0
    rows = {row.neuron: row for row in read_rows("run")}
    names = [*(f"{SAE}[{i}]" for i in range(3)), f"{UNIT}[3]", f"{UNIT}[5]"]
    assert rows.keys() == {*names, f"max(conv2:3,{SAE}[7])"}
    assert {(rows[n].layer, rows[n].channel) for n in names[:3]} == {(SAE, i) for i in range(3)}
    # What an image of a unit vector does to it is what it does to the channel.
    row = rows[f"{UNIT}[5]"]
    assert row.status == "ok"
    images = np.stack([decode_png(image) for image in row.image])
    seen = torch.from_numpy(images).movedim(-1, 1).float() / 255
    channel = Subject(model_from_module(tiny.subject()), ["conv2"], 32)(seen)[0].post[:, 5]
    torch.testing.assert_close(
        torch.tensor(row.activation), channel.mean((1, 2)), rtol=1e-2, atol=1e-2
    )
    assert main(["report", "run"]) == 0
    # Another file under the name is another run; the same is continued.
    assert fit("run", [f"{SAE}[0-2]", f"{UNIT}[3]", f"max(conv2:3,{SAE}[7])"]) == 0
    save_file({"vectors": 2 * torch.eye(16)}, "unit.safetensors")
    capsys.readouterr()
    assert fit("run", [f"{SAE}[0-2]", f"{UNIT}[3,5]"]) != 0
    assert "dictionaries" in capsys.readouterr().err


def test_a_run_of_latents_is_compared_with_one_of_neurons(capsys):
    runs = [
        polylight.score(
            tiny.subject(),
            neurons,
            embedder="tiny:embedder",
            images=8,
            run_dir=name,
            device="cpu",
            **SETTINGS,
        )
        for name, neurons in {"neurons": "conv2:0-3", "latents": f"{SAE}[0-3]"}.items()
    ]
    assert len(runs[1].to_pandas()) == 4
    assert runs[1][f"{SAE}[2]"].row.channel == 2
    assert main(["report", "neurons", "latents"]) == 0
    # Both are measured in the same frame.
    manifests = [read_manifest(name) for name in ("neurons", "latents")]
    assert manifests[0].reference_hash == manifests[1].reference_hash
    assert set(manifests[1].settings) - set(manifests[0].settings) == {"dictionaries"}
    frames = [Reference.load(run.run_dir / REFERENCE) for run in runs]
    assert torch.equal(frames[0].mean, frames[1].mean)
    assert frames[1].layer_std.keys() - frames[0].layer_std.keys() == {SAE}
    assert all(torch.equal(v, frames[1].input_mean[k]) for k, v in frames[0].input_mean.items())
