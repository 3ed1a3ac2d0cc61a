import csv
import io
import json
import math
import os
import re
from numbers import Real

import numpy as np
import pytest
from example_rows import make_dead, make_row

from polylight.cli import main
from polylight.errors import InputError
from polylight.inspect.neuron_table import SHOWN, add_median
from polylight.inspect.query import query
from polylight.inspect.show import render_cost, render_progress, show
from polylight.photos.store import PhotoRanking, write_pair
from polylight.run.manifest import Manifest, write_manifest
from polylight.run.reported import reported_score
from polylight.run.schema import SCHEMA
from polylight.run.store import RunStore, read_rows, read_run


def names(text):
    """First words of the lines between the head and the summary."""
    body = text.split("\n\n")[0].rpartition("─\n")[2].splitlines()
    return [line.split("  ")[0].strip() for line in body]


def test_show_prints_the_table_and_what_to_open(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = tmp_path / ("a" * 60)
    RunStore(run).append([make_row("a:0"), make_row("a:1")])
    (run / "tensorboard").mkdir()
    show(str(run))
    out = capsys.readouterr().out
    assert "2 neurons, median score 0.500" in out
    lines = [line.rstrip() for line in out.splitlines()]
    assert f"rows and images  {run}/neurons/*.parquet" in lines
    assert f"TensorBoard      tensorboard --logdir {run}/tensorboard" in lines
    assert "report" not in out


def test_show_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match=r"expected the directory of a run, but .*nowhere is none"):
        show(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"is not the directory of a run: expected neurons/part-"):
        show(str(tmp_path))
    RunStore(tmp_path)
    with pytest.raises(InputError, match="holds no finished neuron yet"):
        show(str(tmp_path))
    with pytest.raises(InputError, match="--top must be at least 1, but is 0"):
        show(str(tmp_path), top=0)


def manifest(**changes):
    return Manifest(settings={}, seed=0, device={}, **changes)


def shown(capsys, run, **options):
    show(str(run), **options)
    return capsys.readouterr().out


@pytest.fixture
def four(tmp_path):
    """Four neurons of two layers, the last of them dead."""
    dead = make_dead("a:4")
    store = RunStore(tmp_path)
    store.append([make_row("a:1", score=0.25, layer="ü"), make_row("a:2", score=0.75)])
    store.append([make_row("a,3", score=0.5, p_value=math.nan), dead])
    store.close()
    return tmp_path


@pytest.fixture
def alic(tmp_path):
    """Three neurons of a run that reports the score of Alic et al."""
    store = RunStore(tmp_path)
    scores = {"a:1": (0.1, 0.5), "a:2": (0.2, 0.75), "a:3": (0.3, 0.25)}
    store.append([make_row(n, score=s, score_paper=p) for n, (s, p) in scores.items()])
    store.close()
    settings = {"scoring": {"reported_score": "score_paper"}}
    counts = {"total": 3, "finished": 3, "failed": 0, "dead": 0}
    write_manifest(tmp_path, Manifest(settings=settings, seed=0, device={}, neurons=counts))
    return tmp_path


def test_a_run_is_sorted_by_and_shown_with_the_score_that_it_reports(alic, capsys):
    out = shown(capsys, alic)
    assert names(out) == ["a:2", "a:1", "a:3"]
    assert "3 neurons, median Alic et al. (2025) score 0.500" in out
    head = out.split("─")[0]
    # Its title is broken into lines: it is the first column, and not there twice.
    assert "(2025)" in head
    assert "paper" not in head
    assert re.search(r"a:2 +0\.750 +0\.200 +0\.10-0\.30", out)
    assert names(shown(capsys, alic, sort="-score")) == ["a:3", "a:2", "a:1"]
    found = json.loads(shown(capsys, alic, json=True))
    assert [row["neuron"] for row in found] == ["a:2", "a:1", "a:3"]
    query(str(alic), "SELECT neuron FROM neurons", csv=True)
    assert capsys.readouterr().out.split() == ["neuron", "a:2", "a:1", "a:3"]


@pytest.mark.parametrize(
    "settings", [{}, {"scoring": 3}, {"scoring": {"reported_score": "k"}}, {"scoring": {}}]
)
def test_a_manifest_that_names_no_score_means_the_usual_one(settings):
    assert reported_score(Manifest(settings=settings, seed=0, device={})) == "score"
    assert reported_score(None) == "score"


def test_a_run_with_photos_has_one_column_more(alic, capsys, caplog):
    row = read_rows(alic, ["a:1"])[0]
    valid = row.activation[row.label >= 0]
    given = {"num_photos": 9, "share_below": 0.5}
    strongest = float(np.sort(valid)[1])
    rankings = [
        PhotoRanking(neuron="a:1", photo=[3, 1], activation=[strongest, -99.0], **given),
        PhotoRanking(neuron="a:2", photo=[], activation=[], **given),
        PhotoRanking(
            neuron="a:3", photo=[], activation=[], **given | {"num_photos": 0, "share_below": None}
        ),
    ]
    assert "above_photos" not in json.loads(shown(capsys, alic, json=True))[0]
    write_pair(alic, 0, "k", [], rankings)
    found = json.loads(shown(capsys, alic, json=True, sort="above_photos"))
    # Not above its equal; above photos on which its rectifier is silent; without a photo unknown.
    assert {r["neuron"]: r["above_photos"] for r in found} == {
        "a:1": pytest.approx(1 - 2 / len(valid)),
        "a:2": 1.0,
        "a:3": None,
    }
    assert "above_" in shown(capsys, alic, sort="above_photos").split("─")[0]
    query(str(alic), "SELECT count(above_photos) AS n FROM neurons", csv=True)
    assert capsys.readouterr().out.split() == ["n", "2"]
    query(str(alic), "DESCRIBE neurons", csv=True)
    assert "above_photos,DOUBLE" in capsys.readouterr().out
    # A damaged file of photos takes nothing from the neurons.
    next((alic / "photos").glob("neurons-*")).write_bytes(b"PAR1")
    assert json.loads(shown(capsys, alic, json=True))[0]["above_photos"] is None
    assert "above_photos is left out" in caplog.text


def test_json_is_every_scalar_of_every_neuron(four, capsys):
    found = json.loads(shown(capsys, four, json=True))
    read = add_median(read_run(four)).select(list(SHOWN)).to_pylist()
    expected = [{**read[i], "p_value": None} if i == 2 else read[i] for i in (1, 2, 0, 3)]
    assert found == expected
    scalars = [n for n in SCHEMA.names if isinstance(vars(make_row())[n], Real | str)]
    assert list(found[0]) == [*scalars, "activation_median"]
    row = make_row("a:2")
    assert found[0]["activation_median"] == np.median(row.activation[row.label >= 0])
    assert found[3]["activation_median"] is None
    assert found[3]["score"] is found[3]["channel"] is None
    many = four / "many"
    RunStore(many).append([make_row(f"a:{i}", n=1) for i in range(50)])
    assert len(json.loads(shown(capsys, many, json=True))) == 50


def test_csv_is_the_same(four, capsys):
    options = {"where": "layer = 'ü' or score > 0.6", "sort": "score"}
    text = shown(capsys, four, csv=True, **options)
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == list(SHOWN)
    found = json.loads(shown(capsys, four, json=True, **options))
    assert [row["neuron"] for row in found] == ["a:1", "a:2"]
    for row, other in zip(rows, found, strict=True):
        assert row == [str(value) for value in other.values()]
    dead = shown(capsys, four, csv=True, where="status = 'dead'").splitlines()[1]
    assert dead.startswith("a:4,blocks.4,,dead,,,,,,,,,,,,0,max_images,")
    assert shown(capsys, four, csv=True, where="false") == ",".join(SHOWN) + "\r\n"
    assert '"a,3",' in shown(capsys, four, csv=True)


def test_where_keeps_some_and_says_of_how_many(four, capsys):
    text = shown(capsys, four, where="score > 0.3 and layer = 'blocks.4'")
    assert names(text) == ["a:2", "a,3"]
    assert "\n2 of 4 neurons, median score 0.625\n" in text
    assert "\n1 of 4 neurons, median score 0.250\n" in shown(capsys, four, where="layer = 'ü'")
    assert "\n0 of 4 neurons\n" in shown(capsys, four, where="score > 1")
    assert "\n4 neurons, median score 0.500, 1 dead\n" in shown(capsys, four, where="true")
    # The q-value is that of the whole layer, whatever is kept of it.
    whole = {row["neuron"]: row["q_value"] for row in json.loads(shown(capsys, four, json=True))}
    (kept,) = json.loads(shown(capsys, four, json=True, where="neuron = 'a:2'"))
    assert kept["q_value"] == whole["a:2"]


def test_what_a_run_has_cost_is_in_a_line(four, capsys, monkeypatch):
    assert "image-steps" not in shown(capsys, four)
    monkeypatch.setenv("COLUMNS", "80")
    seconds = {"load": 1.0, "ascent": 16.0, "cluster": 2.0, "total": 20.0}
    whole = manifest(image_steps=39504, slot_steps=43893, seconds=seconds)
    write_manifest(four, whole)
    used = f"{100 * whole.occupancy:.0f}"
    line = f"2,469 image-steps/s, occupancy {used} %, time: ascent 80 %, cluster 10 %"
    assert f"1 dead\n{line}\n\nrows and images" in shown(capsys, four)
    other = manifest(image_steps=100, slot_steps=5000, seconds={"ascent": 4.0, "total": 20.0})
    write_manifest(four, other, rank=3)
    # The ranks' steps are added up, not their shares.
    used = f"{100 * manifest(image_steps=39604, slot_steps=48893).occupancy:.0f}"
    line = f"2,494 image-steps/s, occupancy {used} %, time: ascent 50 %, other 42 %"
    assert render_cost(four).plain == line
    assert str(render_cost(four).style) == "dim"


def counted(total, **changes):
    counts = {"total": total, "finished": 0, "failed": 0, "dead": 0}
    return manifest(neurons=counts, **changes)


def test_a_run_that_is_not_complete_says_so(four, capsys):
    write_manifest(four, counted(4, status="finished"))
    assert "complete" not in shown(capsys, four)
    write_manifest(four, counted(14, status="interrupted"))
    line = "not complete: 4 of 14 neurons, interrupted"
    assert f"4 neurons, median score 0.500, 1 dead\n{line}\n" in shown(capsys, four)
    # What is kept of a run is not what it has.
    assert f"1 of 4 neurons, median score 0.250\n{line}\n" in shown(
        capsys, four, where="layer = 'ü'"
    )
    assert "complete" not in shown(capsys, four, json=True)
    # Of another rank nothing is written yet.
    write_manifest(four, counted(4, status="finished"))
    write_manifest(four, counted(1000), rank=2)
    assert render_progress(four, 4).plain == "not complete: 4 of 1,004 neurons, running"
    assert render_progress(four, 1004).plain == ""


def test_what_is_not_known_of_the_cost_is_not_said(tmp_path):
    assert render_cost(tmp_path).plain == render_progress(tmp_path, 3).plain == ""
    write_manifest(tmp_path, manifest())
    assert render_cost(tmp_path).plain == ""
    write_manifest(tmp_path, manifest(image_steps=3, seconds={"ascent": 2.0}))
    assert render_cost(tmp_path).plain == "1.5 image-steps/s"
    write_manifest(tmp_path, manifest(seconds={"total": 2.0}))
    assert render_cost(tmp_path).plain == "time: other 100 %"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json is not a manifest"):
        render_cost(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sort": "-scor"}, r"--sort: a run has no such column 'scor'; nearest: score, "),
        ({"sort": "activation"}, r"no such column 'activation'; nearest: activation_median"),
        ({"sort": ""}, r"no such column ''; nearest: "),
        ({"where": "scor > 1"}, r'--where failed: .*"scor" not found.*; nearest: score, '),
        ({"where": "activation[1] > 1"}, r'"activation" not found.*; nearest: activation_median'),
        ({"where": "score >"}, r"--where failed: Parser Error: syntax error"),
        ({"json": True, "csv": True}, r"--json and --csv were both given"),
        ({"json": True, "top": 3}, r"--top is for the table"),
        ({"csv": True, "top": 3}, r"--top is for the table"),
    ],
)
def test_options_that_cannot_be_used_are_refused(four, capsys, options, said):
    with pytest.raises(InputError, match=said) as refused:
        show(str(four), **options)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_the_median_activation_can_be_asked_for(tmp_path, capsys):
    label = np.zeros(2, np.int32)
    rows = [
        make_row(f"a:{i}", n=2, k=1, activation=np.float32([i, i + 1]), label=label)
        for i in range(3)
    ]
    RunStore(tmp_path).append(rows)
    options = {"where": "activation_median > 1", "sort": "-activation_median", "json": True}
    found = json.loads(shown(capsys, tmp_path, **options))
    assert [(row["neuron"], row["activation_median"]) for row in found] == [
        ("a:2", 2.5),
        ("a:1", 1.5),
    ]


def test_a_path_is_shown_not_obeyed(tmp_path, capsys):
    run = tmp_path / "a\x1b[31m"
    RunStore(run).append([make_row()])
    out = shown(capsys, run)
    assert "\x1b" not in out
    assert rf"{tmp_path}/a\x1b[31m/neurons/*.parquet" in out


def test_a_named_pipe_in_place_of_a_part_is_named(tmp_path):
    RunStore(tmp_path).append([make_row()])
    pipe = tmp_path / "neurons/part-00000-000001.parquet"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=f"cannot read {pipe}: it is not a regular file; move it"):
        show(str(tmp_path))
    pipe.unlink()
    pipe.mkdir()
    with pytest.raises(InputError, match="it is not a regular file"):
        show(str(tmp_path))
    pipe.rmdir()
    pipe.symlink_to("nowhere")
    with pytest.raises(InputError, match="No such file"):
        show(str(tmp_path))


def test_the_command_line_takes_a_minus_and_a_switch(four, capsys):
    assert main(["show", str(four), "--sort", "-neuron", "--where", "-score < 0", "--json"]) == 0
    assert [row["neuron"] for row in json.loads(capsys.readouterr().out)] == ["a:2", "a:1", "a,3"]
