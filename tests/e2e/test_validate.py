import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from polylight.cli import main
from polylight.planted.result import TARGETS
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
        "twins": 1,
        "unlike": 1,
    },
    "repeats": {"seeds": 2, "calibration_neurons": 1, "calibration_seeds": 3},
    "half": "all",
    "counts": [3, 4],
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


def test_a_validation_says_how_well_the_score_does_and_goes_on(tmp_path, caplog, capsys):
    folder = photos(tmp_path / "photos")
    (folder / "notes.txt").write_text("no photo")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    caplog.set_level(logging.INFO)
    assert validate(tmp_path, "--images", str(folder)) == 0
    out = tmp_path / "out"
    assert "2 files are no readable image, left out: broken.jpg, notes.txt" in caplog.text
    text = capsys.readouterr().out
    for words in ("AUROC, 1 against more", "pooled", "independent", "another seed", "6 photos"):
        assert words in text
    # All but the path.
    assert max(len(line) for line in text.splitlines() if "validation.json" not in line) <= 80
    report = json.loads((out / "validation.json").read_text())
    assert {v["name"] for v in report["verdicts"]} == set(TARGETS)
    kinds = [o["kind"] for o in report["outcomes"] if o["recipe"] == "independent"]
    # Of each layer: six singles and those of two pairs; a layer of classes calls maxima logits.
    assert kinds.count("single") == 2 * 10
    # Two of two, one of three screened ones, one of channels that are least alike, one of those
    # most alike unless they are twins.
    assert kinds.count("max") + kinds.count("logits") + kinds.count("twins") == 2 * 5
    assert kinds.count("max") >= 4
    triples = [o for o in report["outcomes"] if o["recipe"] == "independent" and o["m"] == 3]
    assert [o["screened"] for o in triples] == [True, True]
    assert kinds.count("min") == kinds.count("copies") == 2
    alike = [o["similarity"] for o in report["outcomes"] if o["kind"] == "twins"]
    assert all(similarity >= 0.9 for similarity in alike)
    strength = report["reliability"]["strength"]["tiny:subject"]
    assert strength["photos"] == 6
    assert 0 <= strength["above_best"] <= 1
    # The second embedder is the first one.
    assert report["reliability"]["embedders"]["tiny:subject"]["spearman"] == pytest.approx(1)
    assert report["reliability"]["calibration"]["seeds"] == 3
    row = read_rows(out / "runs" / "tiny_subject-polylight-seed0")[0]
    same = [o for o in report["outcomes"] if o["neuron"] == row.neuron and o["seed"] == 0]
    scores = {o["recipe"]: o["scores"].get("polylight") for o in same}
    assert scores["polylight"] == row.score
    # The same images, by one of the two views that the score joins.
    first = [o for o in report["outcomes"] if o["seed"] == 0]
    ours = {o["neuron"]: o for o in first if o["recipe"] == "polylight" and o["status"] == "ok"}
    views = {
        v: {o["neuron"]: o for o in first if o["recipe"] == v} for v in ("embedder", "layer_input")
    }
    for view in views.values():
        assert view.keys() == ours.keys()
        assert all(o["activation"] == ours[name]["activation"] for name, o in view.items())
        assert all(0 <= o["scores"]["polylight"] < 1 for o in view.values())
    assert views["embedder"] != views["layer_input"]
    again = [o for o in report["outcomes"] if o["recipe"] == "layer_input" and o["seed"] == 1]
    assert {o["kind"] for o in again} == {"single"}
    # All four of a neuron's images are its first four.
    whole = next(s for s in report["scopes"] if s["recipe"] == "polylight" and not s["subject"])
    three, four = report["by_count"]
    assert [three["recipe"], four["recipe"]] == ["first 3", "first 4"]
    assert four["scores"]["polylight"]["every"] == whole["scores"]["polylight"]["every"]
    assert four["images"] == whole["images"]
    assert three["scores"]["polylight"]["every"] != whole["scores"]["polylight"]["every"]
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
        ({"recipes": {"pooled": {}}}, "no recipe can be called 'pooled'"),
        ({"recipes": {"mine": {"seed": 1}}}, "'seed' belongs to the subject"),
        ({"recipes": {"mine": {"repulsio": 1}}}, "recipe 'mine' cannot be used: .*repulsio"),
        (
            {"recipes": {"mine": {"selection": "sigclst"}}},
            "selection .sigclst. does not exist",
        ),
        ({"recipes": {"layer_input": {}}}, "no recipe can be called 'layer_input'"),
        ({"recipes": {str(i): {} for i in range(5)}}, "5 recipes are more than the 4"),
        ({"recipes": {"a b": {}, "a/b": {}}}, "recipe 'a_b' is given 2 times"),
        ({"subjects": TINY["subjects"] * 2}, "subject 'tiny_subject' is given 2 times"),
        ({"subjects": [SUBJECT | {"layers": ["fc", "fc"]}]}, "tiny:subject, 'fc' is given 2 times"),
        ({"subjects": [SUBJECT | {"second_embedder": "tiny:headless"}]}, "cannot embed images"),
        ({"sizes": {"singles": -1}}, "singles is -1"),
        ({"repeats": {"seeds": 0}}, "seeds has to be at least 1"),
        ({"repeats": {"calibration_seeds": 2}}, "0 for no check or at least 3, not 2"),
        ({"recipes": {"mine": {"repulsion": -1.0}}}, "repulsion has to be >= 0"),
        ({"counts": [0]}, r"at least 1 each, got \[0\]"),
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


@pytest.mark.parametrize("name", ["validate", "calibrate"])
def test_the_full_configurations_parse(capsys, name):
    config = str(CONFIGS / f"{name}.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--config", config, "--run_dir", "unused", "--print_config"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["half"] == "report"
