import dataclasses
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from test_bad_input import refused
from test_fit import fit, same

from polylight.cli import main
from polylight.run.manifest import read_manifest, write_manifest
from polylight.run.store import RunStore, read_rows


class Command(HTMLParser):
    """What a reader copies."""

    def __init__(self, page):
        super().__init__()
        self.text, self._inside = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = ("id", "command") in attrs

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.text += data if self._inside else ""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a run"
    assert fit(folder, ["act3:0-3", "max(conv2:1,conv2:5)"]) == 0
    return folder


def test_a_run_becomes_a_site_and_a_pdf(run, capsys):
    assert main(["report", str(run)]) == 0
    report = run / "report"
    assert capsys.readouterr().out == f"{report}/index.html\n{report}/report.pdf\n"
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert len(list((report / "neurons").iterdir())) == 5
    data = (report / "assets" / "neurons.js").read_text()
    columns = json.loads(data.removeprefix("window.POLYLIGHT = ").removesuffix(";\n"))["columns"]
    rows = {row.neuron: row for row in read_rows(run)}
    for name, score, status in zip(
        columns["neuron"], columns["score"], columns["status"], strict=True
    ):
        assert score == pytest.approx(rows[name].score, rel=1e-5)
        assert status == rows[name].status
    assert main(["show", str(run)]) == 0
    assert f"{report}/index.html" in capsys.readouterr().out


def test_the_command_on_a_page_makes_the_same_neuron(run, tmp_path, monkeypatch):
    assert main(["report", str(run), "--pdf", "false", "--out", str(tmp_path / "site")]) == 0
    page = next((tmp_path / "site" / "neurons").glob("max*.html")).read_text()
    words = shlex.split(Command(page).text)
    assert words[0] == "polylight"
    monkeypatch.chdir(tmp_path)
    assert main(words[1:]) == 0
    (row,) = read_rows(tmp_path / words[-1])
    before = {row.neuron: row for row in read_rows(run)}["max(conv2:1,conv2:5)"]
    assert same(row, before)


def test_a_report_is_replaced_and_a_failure_leaves_it(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "site"
    assert main(["report", str(run), "--pdf", "false", "--out", str(out)]) == 0
    (out / "old").touch()
    with monkeypatch.context() as broken:
        broken.setattr("polylight.report.site._write_layers", fail)
        with pytest.raises(OSError, match="disk"):
            main(["report", str(run), "--pdf", "false", "--out", str(out)])
    assert (out / "old").exists()
    assert main(["report", str(run), "--pdf", "false", "--out", str(out)]) == 0
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def fail(*_):
    raise OSError("the disk is full")


def test_runs_are_compared(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert fit(other, ["act3:0-3"], "--seed_everything", "1") == 0
    capsys.readouterr()
    out = tmp_path / "comparison"
    assert main(["report", str(run), str(other), "--out", str(out), "--pdf", "false"]) == 0
    assert capsys.readouterr().out == f"{out}/index.html\n"
    page = (out / "index.html").read_text()
    assert "Spearman&#39;s rank correlation" in page or "have a score in both" in page
    assert '<th scope="row">seed</th><td>0</td><td>1</td>' in page
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["1-a-run", "2-other"]
    assert len(list((out / "runs" / "2-other" / "neurons").iterdir())) == 4


def test_a_run_that_goes_on_is_reported_as_far_as_it_is(run, tmp_path, capsys):
    part = tmp_path / "part"
    store = RunStore(part)
    store.append(read_rows(run)[:2])
    store.close()
    write_manifest(part, dataclasses.replace(read_manifest(run), status="running"))
    assert main(["report", str(part), "--pdf", "false"]) == 0
    page = (part / "report" / "index.html").read_text()
    assert "still going on when this report was written" in page
    assert "2 of 5 neurons are here" in page


def test_what_cannot_be_reported_is_refused(run, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert "nowhere" in refused(capsys, nowhere, "report", str(nowhere))
    error = refused(capsys, run, "report", str(run), "--neurons", '["act3:9"]')
    assert re.search(r"has no 'act3:9'; nearest: act3:\d", error)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.html").write_text("<h1>mine</h1>")
    error = refused(capsys, foreign, "report", str(run), "--out", str(foreign))
    assert "no report of polylight, so it is not replaced" in error


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("runs [runs ...]", "--out", "--pdf [true|false]", "--neurons"):
        assert word in text


def test_a_run_writes_its_report_where_it_is_asked_to(tmp_path, capsys):
    assert fit(tmp_path / "run", ["act3:0-1"], "--report", "true") == 0
    assert (tmp_path / "run" / "report" / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "act3:0" in (tmp_path / "run" / "report" / "index.html").read_text()
