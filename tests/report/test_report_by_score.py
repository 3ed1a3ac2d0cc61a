"""A report of a run that reports the score of Alic et al., with photos: what is sorted and said."""

import io
import json
import re

import numpy as np
import pytest
from example_rows import make_dead, make_row
from PIL import Image
from report_fakes import Page

from polylight.photos.store import Photo, PhotoRanking, write_pair
from polylight.report.compare import compare, make_sides
from polylight.report.gather import gather_run
from polylight.report.pdf import extremes
from polylight.report.site import write_site
from polylight.run.manifest import Manifest, write_manifest
from polylight.run.store import RunStore

TITLE = "Alic et al. (2025) score"
SCORES = {"a:0": (0.9, 0.125), "a:1": (0.5, 0.75), "a:2": (0.1, 0.5)}


def write_run(folder, reported):
    store = RunStore(folder)
    rows = [
        make_row(n, layer="a", score=s, score_paper=p, n=8, k=3) for n, (s, p) in SCORES.items()
    ]
    store.append([*rows, make_dead("a:3")])
    store.close()
    settings = {"scoring": {"selection": "gmeans", "reported_score": reported}}
    settings["embedding"] = "plain"
    counts = {"total": 4, "finished": 4, "failed": 0, "dead": 1}
    made = Manifest(
        settings=settings,
        seed=0,
        device={},
        status="finished",
        neurons=counts,
        subject={"name": "net"},
        embedder={"name": "eye"},
    )
    write_manifest(folder, made)
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alic") / "run"
    rows = write_run(folder, "score_paper")
    strongest = float(np.median(rows[1].activation[rows[1].label >= 0]))
    ranking = PhotoRanking(
        neuron="a:1", num_photos=5, share_below=0.5, photo=[2], activation=[strongest]
    )
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, format="JPEG")
    photo = Photo(photo=2, name="2.jpg", jpeg=pixels.getvalue(), embedding=np.ones(16, np.float32))
    write_pair(folder, 0, "k", [[photo]], [ranking])
    return gather_run(folder)


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(run, folder)
    return folder


def test_neurons_are_ranked_by_it(run, site):
    assert (run.reported, run.score_title) == ("score_paper", TITLE)
    assert [n.score for n in run.neurons] == [0.125, 0.75, 0.5, None]
    assert all(n.interval is None for n in run.neurons)
    names = [run.neurons[i].name for part in extremes(run) for i in part.positions]
    assert names == ["a:1", "a:2", "a:0"]
    index = Page(site / "index.html").text
    places = [index.index(f"{name} score") for name in ("a:1", "a:2", "a:0")]
    assert places == sorted(places)
    # The next neuron is the next in that order.
    page = (site / "neurons" / "a-1.html").read_text()
    assert 'rel="next" href="a-2.html"' in page
    assert 'rel="prev"' not in page


def test_pages_say_which_score_it_is(site):
    index = Page(site / "index.html").text
    assert f"Scores are the {TITLE}." in index
    assert "clustered by the embeddings of eye." in index
    assert "median score 0.500" in " ".join(index.split())
    text = Page(site / "neurons" / "a-1.html").text
    assert f"0.750 {TITLE}" in text
    assert "95 %:" not in text
    assert "Its 8 images fall into 3 clusters." in text
    assert "C = (K \u2212 1) / (images \u2212 1) = 0.286" in text
    assert "Of all its images, gmeans chose K = 3" in text
    assert "standard deviations better" not in text
    # polylight's own stands among the other numbers.
    assert re.search(r"Score\s*0\.500", text)


def test_the_table_is_sorted_by_it_and_has_photos(run, site):
    text = (site / "assets" / "neurons.js").read_text()
    data = json.loads(text.removeprefix("window.POLYLIGHT = ").removesuffix(";\n"))
    assert data["reported"] == "score_paper"
    assert data["columns"]["score_paper"] == [0.125, 0.75, 0.5, None]
    above = data["columns"]["above_photos"]
    assert above == [None, run.neurons[1].values["above_photos"], None, None]
    assert 0.2 <= above[1] <= 0.5
    assert "Above photos" in Page(site / "neurons" / "a-1.html").text
    assert "Above photos" not in Page(site / "neurons" / "a-0.html").text


def test_runs_that_report_different_scores_are_compared_by_the_one_that_both_have(run, tmp_path):
    write_run(tmp_path / "own", "score")
    sides = make_sides([run, gather_run(tmp_path / "own")])
    pair = compare(*sides)
    assert [change.difference for change in pair.scored] == [0.0] * 3
    assert {side.run.reported for side in sides} == {"score"}
    both = make_sides([run, run])
    assert {side.run.reported for side in both} == {"score_paper"}
    assert "the scoring" in pair.warning


def test_the_pdf_says_it_too(run, tmp_path):
    pypdf = pytest.importorskip("pypdf")
    pytest.importorskip("typst")
    from polylight.report.pdf import write_pdf

    write_pdf(run, tmp_path / "report.pdf")
    text = "\n".join(p.extract_text() for p in pypdf.PdfReader(tmp_path / "report.pdf").pages)
    text = " ".join(text.split())
    assert f"Scores are the {TITLE}." in text
    assert "0.750" in text
    assert "images above every photo" in text
    assert "95 %: " not in text
