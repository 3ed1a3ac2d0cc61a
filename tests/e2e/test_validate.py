import inspect
import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from polylight.cli import main
from polylight.module import PolysemanticityModule
from polylight.planted import command
from polylight.planted.summary import TARGETS
from polylight.run.store import read_rows

CONFIGS = Path(__file__).parents[2] / "configs"
SUBJECT = {
    "subject": "tiny:subject",
    "embedder": "tiny:embedder",
    "second_embedder": "tiny:embedder",
    "layers": ["conv3", "fc"],
}
TINY = {
    "subjects": [SUBJECT],
    "sizes": {
        "singles": 6,
        "composites": {2: 2},
        "screened": {3: 1},
        "minima": 1,
        "copies": 1,
        "near_duplicates": 1,
        "dissimilar": 1,
    },
    "repeats": {"seeds": 2, "calibration_neurons": 1, "calibration_seeds": 3},
    "split": "all",
    "image_counts": [3, 4],
    "model": {
        "image_size": 32,
        "max_steps": 8,
        "patience": 0,
        "round_size": 2,
        "min_images": 4,
        "max_images": 4,
        "pool_size": 8,
        "reference_images": 12,
        "restarts": 4,
    },
    "accelerator": "cpu",
}


def validate(tmp_path, *more, **changes):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return main(["validate", "--config", str(path), "--run_dir", str(tmp_path / "out"), *more])


def photos(folder, count=6):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_a_validation_says_how_well_the_score_does_and_goes_on(
    tmp_path, caplog, capsys, monkeypatch
):
    monkeypatch.setattr(command, "RESAMPLES", 100)
    folder = photos(tmp_path / "photos")
    (folder / "notes.txt").write_text("no photo")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    caplog.set_level(logging.INFO)
    assert validate(tmp_path, "--images", str(folder)) == 0
    out = tmp_path / "out"
    assert "2 files are no readable image, left out: broken.jpg, notes.txt" in caplog.text
    text = capsys.readouterr().out
    for words in ("AUROC, one feature", "pooled", "independent", "another seed", "6 photos"):
        assert words in text
    # All but the path.
    assert max(len(line) for line in text.splitlines() if "validation.json" not in line) <= 80
    report = json.loads((out / "validation.json").read_text())
    assert {target["measure"] for target in report["targets"]} == set(TARGETS)
    kinds = [o["kind"] for o in report["outcomes"] if o["condition"] == "independent"]
    # Of each layer: six singles and those of two pairs; a layer of classes calls maxima logits.
    assert kinds.count("single") == 2 * 10
    # Two of two, one of three screened ones, one of the least similar channels, one of the most
    # similar ones unless they are near-duplicates.
    composites = ("max", "logits", "near_duplicates")
    assert sum(kinds.count(kind) for kind in composites) == 2 * 5
    assert kinds.count("max") >= 4
    triples = [o for o in report["outcomes"] if o["condition"] == "independent" and o["m"] == 3]
    assert [o["screened"] for o in triples] == [True, True]
    assert kinds.count("min") == kinds.count("copies") == 2
    near = [o["similarity"] for o in report["outcomes"] if o["kind"] == "near_duplicates"]
    assert all(similarity >= 0.9 for similarity in near)
    shown = report["reliability"]["photos"]["tiny:subject"]
    assert shown["photos"] == 6
    assert 0 <= shown["above_best"] <= 1
    # The second embedder is the first one.
    assert report["reliability"]["embedders"]["tiny:subject"]["spearman"] == pytest.approx(1)
    assert report["reliability"]["calibration"]["seeds"] == 3
    row = read_rows(out / "runs" / "tiny_subject-polylight-seed0")[0]
    same = [o for o in report["outcomes"] if o["neuron"] == row.neuron and o["seed"] == 0]
    scores = {o["condition"]: o["scores"].get("polylight") for o in same}
    assert scores["polylight"] == row.score
    # The same images, by one of the two views that the score joins.
    first = [o for o in report["outcomes"] if o["seed"] == 0]
    ours = {o["neuron"]: o for o in first if o["condition"] == "polylight" and o["status"] == "ok"}
    views = {
        v: {o["neuron"]: o for o in first if o["condition"] == v}
        for v in ("embedder", "layer_input")
    }
    for view in views.values():
        assert view.keys() == ours.keys()
        assert all(o["activation"] == ours[name]["activation"] for name, o in view.items())
        assert all(0 <= o["scores"]["polylight"] < 1 for o in view.values())
    assert views["embedder"] != views["layer_input"]
    again = [o for o in report["outcomes"] if o["condition"] == "layer_input" and o["seed"] == 1]
    assert {o["kind"] for o in again} == {"single"}
    # All four of a neuron's images are its first four.
    whole = next(s for s in report["scopes"] if s["condition"] == "polylight" and not s["subject"])
    three, four = report["by_image_count"]
    assert [three["condition"], four["condition"]] == ["first 3", "first 4"]
    assert four["scores"]["polylight"]["spearman"] == whole["scores"]["polylight"]["spearman"]
    assert four["images"] == whole["images"]
    assert three["scores"]["polylight"]["spearman"] != whole["scores"]["polylight"]["spearman"]
    assert (out / "validation.png").stat().st_size > 1000

    # Everything is there already; the same summary comes of it.
    written = sorted(path.stat().st_mtime_ns for path in out.rglob("*.parquet"))
    assert validate(tmp_path, "--images", str(folder)) == 0
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*.parquet")) == written
    again = json.loads((out / "validation.json").read_text())
    assert again == report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": []}, "no subjects are given"),
        ({"sizes": {"singles": 40}}, r"24 channels, of which \d+ can be used .* need 4\d"),
        ({"conditions": {"pooled": {}}}, "no condition can be called 'pooled'"),
        ({"conditions": {"mine": {"seed": 1}}}, "'seed' belongs to the subject"),
        ({"conditions": {"mine": {"repulsio": 1}}}, "condition 'mine' cannot be used: .*repulsio"),
        (
            {"conditions": {"mine": {"selection": "sigclst"}}},
            "selection .sigclst. does not exist",
        ),
        ({"conditions": {"layer_input": {}}}, "no condition can be called 'layer_input'"),
        ({"conditions": {str(i): {} for i in range(5)}}, "5 conditions are more than the 4"),
        ({"conditions": {"a b": {}, "a/b": {}}}, "condition 'a_b' is given 2 times"),
        ({"subjects": TINY["subjects"] * 2}, "subject 'tiny_subject' is given 2 times"),
        ({"subjects": [SUBJECT | {"layers": ["fc", "fc"]}]}, "tiny:subject, 'fc' is given 2 times"),
        ({"subjects": [SUBJECT | {"second_embedder": "tiny:headless"}]}, "cannot embed images"),
        ({"sizes": {"singles": -1}}, "singles is -1"),
        ({"repeats": {"seeds": 0}}, "seeds has to be at least 1"),
        ({"repeats": {"calibration_seeds": 2}}, "0 for no check or at least 3, not 2"),
        ({"conditions": {"mine": {"repulsion": -1.0}}}, "repulsion has to be >= 0"),
        ({"image_counts": [0]}, r"at least 1 each, got \[0\]"),
        ({"images": "nowhere"}, "--images nowhere is no folder"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_any_work(tmp_path, capsys, changes, message):
    assert validate(tmp_path, **changes) == 2
    error = capsys.readouterr().err

    assert re.search(message, " ".join(error.split())), error
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photos_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert validate(tmp_path, "--images", str(tmp_path / "empty")) == 2
    assert "holds no readable image" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_score_tells_one_feature_from_more_in_a_real_network(tmp_path):
    sizes = {"singles": 6, "composites": {2: 3, 3: 2, 4: 1}, "minima": 0, "copies": 0}
    networks = {"subject": "efficientnet_lite0", "embedder": "efficientnet_lite2"}
    path = tmp_path / "real.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "subjects": [networks | {"layers": ["blocks.4"]}],
                "sizes": sizes | {"near_duplicates": 0, "dissimilar": 0},
                "repeats": {"seeds": 1},
                "conditions": {"polylight": {}},
                "accelerator": "cpu",
            }
        )
    )
    assert main(["validate", "--config", str(path), "--run_dir", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "validation.json").read_text())
    found = report["scopes"][0]["scores"]["polylight"]
    assert found["auroc"]["n"] == 12
    assert found["auroc"]["value"] >= TARGETS["auroc"]
    assert found["above_mean"]["value"] == 1.0


def test_without_scikit_learn_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert validate(tmp_path) == 2
    assert "pip install 'polylight[validate]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def defaults_of_fit():
    parameters = inspect.signature(PolysemanticityModule).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def test_without_settings_a_validation_runs_the_defaults_of_fit(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def stop(run, accelerator):
        assert accelerator == "auto"
        raise StopError(PolysemanticityModule(**run.arguments, seed=run.seed))

    monkeypatch.setattr(command, "finish_run", stop)
    path = tmp_path / "bare.yaml"
    networks = {"subject": "tiny:subject", "embedder": "tiny:embedder"}
    sizes = {"singles": 1, "composites": {}, "minima": 0, "copies": 0}
    sizes |= {"near_duplicates": 0, "dissimilar": 0}
    monkeypatch.setattr(command, "load_or_make_reference", lambda *_: None)
    path.write_text(
        yaml.safe_dump({"subjects": [networks | {"layers": ["conv3"]}], "sizes": sizes})
    )
    with pytest.raises(StopError) as stopped:
        main(["validate", "--config", str(path), "--run_dir", str(tmp_path / "out")])
    assert dict(stopped.value.args[0].hparams) == defaults_of_fit() | networks


def test_what_is_published_was_run_with_the_defaults_of_fit():
    kept = CONFIGS.parent / "benchmarks" / "validation" / "validation.json"
    settings = json.loads(kept.read_text())["model"]
    # How many images are made at once changes no more than the last digits.
    del settings["pool_size"]
    # Without a number of their own, the fewest images are the most.
    assert settings.pop("min_images") == settings["max_images"]
    assert settings.items() <= defaults_of_fit().items()


@pytest.mark.parametrize("name", ["validate", "calibrate"])
def test_the_full_configurations_parse_and_change_no_setting_of_fit(capsys, name):
    config = str(CONFIGS / f"{name}.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--config", config, "--run_dir", "unused", "--print_config"])
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["split"] == "test"
    assert parsed["model"] is None
    assert next(iter((parsed["conditions"] or {"polylight": {}}).values())) == {}
