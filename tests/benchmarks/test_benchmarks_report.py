import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.document import OK, check_document
from benchmarks.machine import Watch
from benchmarks.synthetic import ODD_LAYER, write_synthetic_run
from polylight.run.manifest import read_manifest
from polylight.run.png import decode_png
from polylight.run.store import read_rows, read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "run"
    write_synthetic_run(folder, neurons=80, images=12, layers=4, size=16, features=32)
    return folder


def test_synthetic_run_is_as_fit_leaves_one(folder):
    rows = read_run(folder, columns=["neuron", "layer", "status", "channel"]).to_pylist()
    assert len({row["neuron"] for row in rows}) == 80
    assert sorted({row["layer"] for row in rows if row["channel"] is not None}) == sorted(
        ["stage.0", "stage.1", "stage.2", ODD_LAYER]
    )
    assert [row["neuron"].partition("(")[0] for row in rows if row["channel"] is None] == [
        "max"
    ] * 2
    parts = sorted((folder / "neurons").glob("*.parquet"))
    assert len(parts) == 5
    manifest = read_manifest(folder)
    dead, failed = (sum(row["status"] == s for row in rows) for s in ("dead", "failed"))
    assert (dead, failed) == (2, 1)
    assert manifest.neurons == {"total": 80, "finished": 80, "dead": 2, "failed": 1}
    assert (manifest.status, manifest.images) == ("finished", 80 * 12)
    assert "<script>" in ODD_LAYER
    assert (folder / "config.yaml").is_file()


def test_synthetic_clusters_are_clusters_and_the_score_follows_from_them(folder):
    ok = [row for row in read_rows(folder) if row.status == "ok"]
    assert {row.k for row in ok} == {1, 2, 3, 4}
    within, between = [], []
    for row in ok:
        unit = row.embedding / np.linalg.norm(row.embedding, axis=1, keepdims=True)
        cosine = unit @ unit.T
        same = row.label[:, None] == row.label
        within.append(cosine[same & ~np.eye(len(unit), dtype=bool)].mean())
        if row.k > 1:
            between.append(cosine[~same].mean())
            assert within[-1] > between[-1] + 0.1
        assert np.bincount(row.label).tolist() == sorted(np.bincount(row.label), reverse=True)
        assert row.cluster_weight.sum() == pytest.approx(1.0)
        assert row.score_low <= row.score <= row.score_high
        # Rao's score of the clusters' means, which differ from their centres by noise.
        mean = np.stack([unit[row.label == c].mean(0) for c in range(row.k)])
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        p = row.cluster_weight
        assert row.score == pytest.approx(1 - p @ np.maximum(mean @ mean.T, 0) @ p, abs=0.15)
    assert np.mean(within) > np.mean(between) + 0.3


def test_synthetic_pictures_differ_by_cluster(folder):
    row = next(row for row in read_rows(folder) if row.k == 2)
    pictures = np.stack([decode_png(png) for png in row.image])
    assert pictures.shape == (12, 16, 16, 3)
    files = [{png for png, c in zip(row.image, row.label, strict=True) if c == k} for k in (0, 1)]
    assert not files[0] & files[1]
    assert pictures.std() > 20


def test_synthetic_run_is_the_same_for_the_same_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_run(tmp_path / name, neurons=8, images=6, layers=2, size=8, seed=seed)
    a, b, c = (read_run(tmp_path / name) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)


def test_command_is_measured_as_a_process_of_its_own(tmp_path, monkeypatch):
    started = []

    def run(arguments, **_):
        started.append(arguments)
        run_dir = tmp_path / "run"
        (run_dir / "report" / "neurons").mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (run_dir / "report" / "neurons" / f"{i}.html").write_text("")
        (run_dir / "report" / "report.pdf").write_bytes(b"%PDF-1.7" + bytes(2**20))
        (tmp_path / "run.memory.json").write_text(json.dumps({"peak": 900.0}))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    rows = report.command_rows(tmp_path / "run", 3, "3 neurons", 2)
    assert [row.passed for row in rows] == [True, True, True, True, None]
    assert (rows[3].median, rows[3].target, rows[3].n) == (900.0, "<= 1024", 2)
    assert rows[4].median == pytest.approx(1.0, abs=1e-4)
    assert rows[2].level == "headline"
    assert started[0][:3] == [sys.executable, "-m", "benchmarks.process"]
    assert started[0][4:] == ["report", str(tmp_path / "run"), "--pdf", "true"]
    missing = report.command_rows(tmp_path / "run", 5, "5 neurons", 1)
    assert (missing[0].median, missing[0].passed) == (2.0, False)


def test_command_that_fails_says_why(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, "", "expected the directory of a run")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="expected the directory of a run"):
        report.report_process(tmp_path)


def test_pdf_is_measured_after_a_warm_up(folder, monkeypatch):
    pdf = pytest.importorskip("polylight.report.pdf")
    written = []
    monkeypatch.setattr(pdf, "write_pdf", lambda run, path: written.append(path))
    row = report.pdf_row(folder, "20 neurons", 3)
    assert (row.n, row.unit, row.passed, len(written)) == (3, "s", True, 4)


def test_browser_rows_hold_targets_and_what_is_right():
    seen = {
        "paints": [300.0, 200.0, 250.0],
        "filters": [20.0, 120.0, 130.0],
        "count": "5 of 9 neurons",
    }
    right, paint, taken = report.browser_rows(seen, "5 of 9 neurons", "9")
    assert (right.passed, paint.median, paint.passed) == (True, 250.0, True)
    assert (taken.median, taken.target, taken.passed) == (120.0, "<= 100", False)
    assert report.browser_rows(seen, "4 of 9 neurons", "9")[0].passed is False


def test_without_a_browser_there_are_rows_that_say_so(monkeypatch):
    monkeypatch.setattr(report, "write_synthetic_run", lambda folder, **_: folder.mkdir())
    monkeypatch.setattr(report, "command_rows", lambda *_: [])
    pdf = report.row([1.0], case="PDF", unit="s")
    monkeypatch.setattr(report, "pdf_row", lambda *_: pdf)
    monkeypatch.setattr(report.shutil, "which", lambda _: None)
    rows, config = report.run(quick=True)
    assert [row.status == OK for row in rows] == [True, False, False]
    assert all("not measured" in row.status for row in rows[1:])
    document = {
        "metadata": Watch().metadata("report", True, config),
        "results": [vars(row) for row in rows],
    }
    check_document(document)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert report.browser() == ("", "not measured, for playwright is not installed")


def test_report_is_among_the_benchmarks():
    assert "report" in command.BENCHMARKS
