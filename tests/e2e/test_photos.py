import json

import numpy as np
import pytest
from PIL import Image
from test_bad_input import refused
from test_fit import TINY, fit, same

from polylight.cli import main
from polylight.photos.store import list_pairs
from polylight.run.manifest import read_manifest
from polylight.run.store import read_rows

NEURONS = ["act3:0-2", "max(conv2:1,conv2:5)", "-conv2:3", "conv2:2@center", "fc:7"]
NAMES = {"act3:0", "act3:1", "act3:2", *NEURONS[1:]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(21):
        pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        inner = folder / f"class {i % 2}"
        inner.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((70, 50)).save(inner / f"{i:02d}.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "run"
    assert fit(folder, NEURONS, "--data.photos", str(photos)) == 0
    return folder


def rankings(run_dir):
    """By neuron, of the last that was measured."""
    return {r.neuron: r for pair in list_pairs(run_dir) for r in pair.rankings()}


def test_every_neuron_has_its_photos(run, photos):
    found = rankings(run)
    assert set(found) == NAMES
    (pair,) = list_pairs(run)
    (kept,) = pair.stream(["photo", "name", "image", "embedding"], 999)
    names = dict(zip(kept["photo"].to_pylist(), kept["name"].to_pylist(), strict=True))
    assert set(names) == {photo for r in found.values() for photo in r.photo}
    assert all((photos / name).is_file() for name in names.values())
    rows = {row.neuron: row for row in read_rows(run)}
    for name, r in found.items():
        assert r.num_photos == 21
        assert len(r.photo) == len(set(r.photo)) <= 16
        assert r.activation == sorted(r.activation, reverse=True)
        valid = rows[name].activation[rows[name].label >= 0]
        if not len(valid):
            assert r.share_below is None
            continue
        # Of those kept it is known which are below; of the others only that they are weaker.
        above = sum(a >= np.median(valid) for a in r.activation)
        assert r.share_below == (21 - above) / 21 or above == 16


def test_photos_change_no_neuron_and_may_come_later(run, photos, tmp_path, caplog):
    assert fit(tmp_path / "run", NEURONS) == 0
    assert not (tmp_path / "run" / "photos").exists()
    with_photos = {row.neuron: row for row in read_rows(run)}
    assert all(same(row, with_photos[row.neuron]) for row in read_rows(tmp_path / "run"))
    # The parts of the composite are probed anew.
    assert fit(tmp_path / "run", NEURONS, "--data.photos", str(photos)) == 0
    assert "all 7 neurons are finished already" in caplog.text
    assert rankings(tmp_path / "run") == rankings(run)
    # And without them again.
    assert fit(tmp_path / "run", NEURONS) == 0
    assert rankings(tmp_path / "run") == rankings(run)
    assert read_manifest(tmp_path / "run").status == "finished"


def test_only_what_is_missing_is_measured(photos, tmp_path, monkeypatch, caplog):
    def again(neurons):
        caplog.clear()
        given = ["--data.photos", str(folder)]
        assert fit(tmp_path / "run", neurons, *given) == 0
        return [text for text in caplog.messages if text.startswith("showing")]

    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(photos.rglob("*.png"))[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    assert again(["act3:0-1"]) == [f"showing the 4 files of {folder} to 2 neurons"]
    assert again(["act3:0-1"]) == []
    assert again(["act3:0-2"]) == [f"showing the 4 files of {folder} to 1 neurons"]
    assert [len(pair.rankings()) for pair in list_pairs(tmp_path / "run")] == [2, 1]
    next(folder.iterdir()).unlink()
    assert again(["act3:0-2"]) == [f"showing the 3 files of {folder} to 3 neurons"]
    assert [len(pair.rankings()) for pair in list_pairs(tmp_path / "run")] == [3]
    assert len(list((tmp_path / "run" / "photos").iterdir())) == 2


def test_a_stop_while_photos_are_shown_loses_no_neuron(run, photos, tmp_path, monkeypatch, caplog):
    given = ["--data.photos", str(photos)]

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("polylight.photos.keep.describe_photos", stop)
        with pytest.raises(SystemExit) as ended:
            fit(tmp_path / "run", NEURONS, *given)
    assert ended.value.code == 1
    assert "the same command goes on with them" in caplog.text
    assert {row.neuron for row in read_rows(tmp_path / "run")} == NAMES
    assert read_manifest(tmp_path / "run").status == "finished"
    assert list_pairs(tmp_path / "run") == []
    assert fit(tmp_path / "run", NEURONS, *given) == 0
    assert rankings(tmp_path / "run") == rankings(run)


def test_a_run_that_is_cut_off_leaves_photos_to_the_next_sitting(photos, tmp_path):
    given = ["--data.photos", str(photos)]
    assert fit(tmp_path / "run", ["act3:0-5"], *given, "--trainer.max_steps", "30") == 0
    assert read_manifest(tmp_path / "run").status == "interrupted"
    assert not (tmp_path / "run" / "photos").exists()
    assert fit(tmp_path / "run", ["act3:0-5"], *given) == 0
    assert len(rankings(tmp_path / "run")) == 6


def test_shards_share_a_directory(run, photos, tmp_path):
    for shard in ("0/2", "1/2"):
        given = ["--data.photos", str(photos), "--data.shard", shard]
        assert fit(tmp_path / "run", NEURONS, *given) == 0
    assert [pair.rank for pair in list_pairs(tmp_path / "run")] == [0, 1]
    assert rankings(tmp_path / "run") == rankings(run)


def test_pages_show_the_photos(run):
    assert main(["report", str(run), "--pdf", "false"]) == 0
    pages = [path.read_text() for path in (run / "report" / "neurons").glob("*.html")]
    assert len(pages) == 7
    used = list((run / "report" / "photos").iterdir())
    assert 0 < len(used) <= 21
    assert all(any(f"../photos/{path.name}" in page for page in pages) for path in used)
    for path in used:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (128, 128))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: path.write_text("no photo"), "is no folder"),
        (lambda path: path.mkdir(), "holds no readable image"),
    ],
)
def test_folders_without_photos_are_refused_before_any_work(tmp_path, capsys, make, message):
    make(tmp_path / "photos")
    neurons = ["--data.neurons", json.dumps(["act3:0"]), "--data.photos", str(tmp_path / "photos")]
    arguments = ["fit", "--run_dir", str(tmp_path / "run"), *neurons, *TINY]
    error = refused(capsys, tmp_path / "run", *arguments)
    assert "--data.photos" in error
    assert message in error
    assert not (tmp_path / "run").exists()
