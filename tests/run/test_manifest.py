import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import torch
from example_rows import make_dead, make_row

from polylight.errors import InputError
from polylight.run.manifest import Manifest, read_manifest, write_manifest
from polylight.run.session import RunSession
from polylight.run.store import RunStore

SETTINGS = {
    "ascent": {"steps": 256, "lr": 0.05, "transforms": ["jitter", "rotate"]},
    "pool": None,
    "layer": "blocks.4",
}


def make_manifest(settings=None, **changes):
    return Manifest(
        settings=settings or SETTINGS,
        seed=changes.pop("seed", 0),
        device=changes.pop("device", {"name": "cpu", "threads": 1}),
        **changes,
    )


def open_run(run_dir, fresh, rank=0, neurons=("a:0",)):
    """Open a session and end it; the manifest that it has written."""
    with RunSession(run_dir, fresh, neurons, rank):
        return read_manifest(run_dir, rank)


def changed(**ascent):
    return {**SETTINGS, "ascent": {**SETTINGS["ascent"], **ascent}}


def test_a_manifest_comes_back_whole(tmp_path):
    before = make_manifest(
        subject={"name": "resnet18", "source": "torchvision", "weights_hash": "ab"},
        embedder={"name": "resnet18", "source": "timm", "weights_hash": "cd"},
        reference_hash="ef",
        status="interrupted",
    ).advance(neurons={"finished": 3, "dead": 1}, images=7, seconds={"ascent": 0.5})
    write_manifest(tmp_path, before)
    assert read_manifest(tmp_path) == before
    assert read_manifest(tmp_path, rank=1) is None
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_file_says_what_a_reader_looks_for(tmp_path):
    manifest = make_manifest().advance(image_steps=600, slot_steps=800, seconds={"ascent": 2.0})
    write_manifest(tmp_path, manifest, rank=2)
    stored = json.loads((tmp_path / "manifest-00002.json").read_text())
    assert stored["schema_version"] == 2
    assert stored["settings"] == SETTINGS
    assert stored["settings_hash"] == manifest.settings_hash
    assert stored["image_steps_per_second"] == 300.0
    assert stored["occupancy"] == 0.75
    assert stored["shares"] == {}
    assert stored["neurons"] == {"total": 0, "finished": 0, "failed": 0, "dead": 0}
    assert stored["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    age = datetime.now(UTC) - datetime.fromisoformat(stored["created"])
    assert 0 <= age.total_seconds() < 60


def test_rates_before_any_work_are_zero():
    manifest = make_manifest()
    assert (manifest.image_steps_per_second, manifest.occupancy) == (0.0, 0.0)
    assert manifest.shares == {}


def test_shares_of_the_time_add_up_over_all_sittings(tmp_path):
    seconds = {"load": 1.0, "ascent": 4.0, "total": 8.0}
    once = make_manifest().advance(seconds=seconds)
    assert once.shares == {"load": 0.125, "ascent": 0.5, "other": 0.375}
    twice = once.advance(seconds={"ascent": 6.0, "cluster": 2.0, "total": 8.0})
    assert twice.shares == {"load": 0.0625, "ascent": 0.625, "cluster": 0.125, "other": 0.1875}
    write_manifest(tmp_path, twice)
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored["shares"] == twice.shares


def test_a_manifest_without_what_can_be_worked_out_is_read(tmp_path):
    before = make_manifest().advance(seconds={"ascent": 4.0, "total": 8.0})
    write_manifest(tmp_path, before)
    path = tmp_path / "manifest.json"
    stored = json.loads(path.read_text())
    for name in ("shares", "occupancy"):
        del stored[name]
    path.write_text(json.dumps(stored))
    assert read_manifest(tmp_path) == before
    path.write_text(json.dumps({**stored, "speed": 1}))
    with pytest.raises(InputError, match=r"missing or unknown: speed\)"):
        read_manifest(tmp_path)
    del stored["seed"]
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"missing or unknown: seed\)"):
        read_manifest(tmp_path)


def test_the_hash_is_stable_and_sees_every_setting():
    backwards = {key: SETTINGS[key] for key in reversed(SETTINGS)}
    assert make_manifest(backwards).settings_hash == make_manifest().settings_hash
    # Of the canonical JSON, by sha256sum: a change of it would orphan every run there is.
    assert make_manifest({"a": 1, "b": [0.5, None, "x"]}).settings_hash == (
        "5d1e9369ba4bce6b97fc87644e3a806eb68b89a25901a2d1a3c47254a8b7d4d6"
    )
    for other in (changed(steps=257), changed(transforms=["rotate", "jitter"]), {"pool": 1}):
        assert make_manifest(other).settings_hash != make_manifest().settings_hash


def test_settings_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_manifest(tmp_path, make_manifest({"path": tmp_path}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_directory_is_taken(tmp_path, exists):
    run = tmp_path / "deep" / "run"
    if exists:
        run.mkdir(parents=True)
    fresh = make_manifest(neurons=counts(total=1))
    opened = open_run(run, fresh)
    assert dataclasses.replace(opened, updated=fresh.updated) == fresh
    assert read_manifest(run) == opened


def test_a_run_is_continued_and_its_counters_go_on(tmp_path):
    first = open_run(tmp_path, make_manifest())
    first = dataclasses.replace(first, created="2026-01-01T00:00:00+00:00", reference_hash="ef")
    work = {
        "images": 10,
        "image_steps": 2560,
        "slot_steps": 2048,
        "seconds": {"ascent": 2.0, "total": 3.0},
    }
    write_manifest(tmp_path, dataclasses.replace(first.advance(**work), status="interrupted"))
    store = RunStore(tmp_path)
    store.append([make_row("a:0"), make_dead("a:1"), make_row("b:0")])
    store.close()
    device = {"name": "NVIDIA H100", "threads": 8}
    fresh = dataclasses.replace(make_manifest(), device=device)
    second = open_run(tmp_path, fresh, neurons=["a:0", "a:1", "a:2"])
    assert second.status == "running"
    assert second.device == device
    assert second.created == "2026-01-01T00:00:00+00:00"
    assert second.reference_hash == "ef"
    # Counted from the rows of what is asked for now.
    assert second.neurons == counts(total=3, finished=2, dead=1)
    done = second.advance(**work)
    assert (done.images, done.image_steps, done.slot_steps) == (20, 5120, 4096)
    assert done.seconds == {"ascent": 4.0, "total": 6.0}
    assert done.image_steps_per_second == 1280.0


def counts(**changes):
    return {"total": 0, "finished": 0, "failed": 0, "dead": 0, **changes}


def test_ranks_have_counters_of_their_own_and_settings_in_common(tmp_path):
    write_manifest(tmp_path, open_run(tmp_path, make_manifest()).advance(images=5))
    # What rank 0 wrote meanwhile is no foreign file to rank 1.
    (tmp_path / "config.yaml").touch()
    assert open_run(tmp_path, make_manifest(), rank=1).images == 0
    assert open_run(tmp_path, make_manifest()).images == 5
    with pytest.raises(InputError, match=r"ascent.lr: 0.05 -> 0.1\b"):
        open_run(tmp_path, make_manifest(changed(lr=0.1)), rank=2)


def test_a_later_rank_may_come_first(tmp_path):
    open_run(tmp_path, make_manifest(), rank=3)
    open_run(tmp_path, make_manifest(), rank=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest-00003.json", "manifest.json", "neurons",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed(steps=512), r"settings \(ascent.steps: 256 -> 512\); choose another --run_dir"),
        ({**SETTINGS, "pool": {"size": 4}}, r"pool: null -> absent, pool.size: absent -> 4\)"),
        (changed(note="a" * 99), r'ascent.note: absent -> "a{46}…\)'),
        ({f"s{i}": i for i in range(4)}, r"ascent.lr: 0.05 -> absent, .* and 4 more\)"),
    ],
)
def test_a_run_of_other_settings_is_refused_with_what_differs(tmp_path, settings, message):
    before = open_run(tmp_path, make_manifest())
    with pytest.raises(InputError, match=message):
        open_run(tmp_path, make_manifest(settings))
    assert read_manifest(tmp_path) == before


def test_long_values_that_differ_at_the_end_differ(tmp_path):
    open_run(tmp_path, make_manifest(changed(note="a" * 99)))
    with pytest.raises(InputError, match=r"ascent\.note"):
        open_run(tmp_path, make_manifest(changed(note="a" * 99 + "b")))


def test_seed_and_weights_belong_to_the_run(tmp_path):
    open_run(tmp_path, make_manifest(subject={"weights_hash": "ab"}))
    with pytest.raises(InputError, match=r"\(seed: 0 -> 1\)"):
        open_run(tmp_path, make_manifest(seed=1))
    with pytest.raises(InputError, match=r'\(subject.weights_hash: "ab" -> "cd"\)'):
        open_run(tmp_path, make_manifest(subject={"weights_hash": "cd"}))
    open_run(tmp_path, make_manifest(subject={}, reference_hash="ef"))


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"is not empty and holds no run \(thesis.tex\)"):
        open_run(tmp_path, make_manifest())
    for i in range(9):
        (tmp_path / f"chapter{i}").mkdir()
    with pytest.raises(InputError, match=r"\(chapter0, .*chapter4 …\); choose another --run_dir"):
        open_run(tmp_path, make_manifest())
    assert len(list(tmp_path.iterdir())) == 10


def test_hidden_files_do_not_make_a_directory_foreign(tmp_path):
    (tmp_path / ".submitit").mkdir()
    open_run(tmp_path, make_manifest())


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="run is a file; choose another --run_dir"):
        open_run(tmp_path / "run", make_manifest())


def test_a_directory_that_cannot_be_made_is_found_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write in the run directory"):
        open_run(tmp_path / "file" / "run", make_manifest())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a manifest of polylight; restore it"),
        ("[]", "is not a manifest of polylight; restore it"),
        ('{"schema_version": 2, "seed": 0}', r"missing or unknown: .*images"),
        ('{"schema_version": 3}', "schema version 3.* up to 2; upgrade polylight"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_named(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=rf"manifest.json .*{message}"):
        open_run(tmp_path, make_manifest())


def test_what_an_earlier_session_measured_is_kept_on_the_same_device(tmp_path):
    first = open_run(tmp_path, make_manifest(device={"name": "cpu", "threads": 2}))
    measured = {**first.device, "pool_size": 16}
    write_manifest(tmp_path, dataclasses.replace(first, device=measured))
    again = open_run(tmp_path, make_manifest(device={"name": "cpu", "threads": 4}))
    assert again.device == {"name": "cpu", "threads": 4, "pool_size": 16}
    other = open_run(tmp_path, make_manifest(device={"name": "NVIDIA H100", "threads": 4}))
    assert other.device == {"name": "NVIDIA H100", "threads": 4}


def test_a_start_that_is_refused_changes_nothing(tmp_path):
    with RunSession(tmp_path, make_manifest(), ["a:0"]) as live:
        live.append([make_row("a:0")])
        live.record("finished")
        script = (
            "import sys, json\n"
            "from polylight.errors import InputError\n"
            "from polylight.run.manifest import read_manifest\n"
            "from polylight.run.session import RunSession\n"
            "there = read_manifest(sys.argv[1])\n"
            "try:\n"
            "    RunSession(sys.argv[1], there, ['a:0', 'a:1'])\n"
            "except InputError as error:\n"
            "    print(error)\n"
        )
        # Reading a locked file would end the lock: that is how POSIX has it.
        files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
        before = {path: path.read_bytes() for path in files}
        second = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "is being written by process" in second.stdout
        assert {path: path.read_bytes() for path in files} == before


def test_a_session_that_was_killed_before_its_manifest_is_no_obstacle(tmp_path):
    RunStore(tmp_path).close()
    assert open_run(tmp_path, make_manifest()).neurons == counts(total=1)
