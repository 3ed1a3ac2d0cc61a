"""A scored run as a table, as neurons, as HTML."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from example_rows import make_dead, make_row
from PIL import Image

from polylight import InputError, open_run
from polylight.api.html import neuron_html, run_html
from polylight.inspect.neuron_table import SHOWN
from polylight.run.png import decode_png, encode_png
from polylight.run.store import RunStore

NASTY = "<script>alert('x')</script>:1"


@pytest.fixture
def stored(tmp_path):
    def store(rows):
        writer = RunStore(tmp_path / "run")
        writer.append(rows)
        writer.close()
        return tmp_path / "run"

    return store


@pytest.fixture
def run(stored):
    label = np.array([1, 0, 1, -1, 1, 0], np.int32)
    activation = np.array([1, 2, 5, 9, 3, 4], np.float32)
    weight = np.array([0.3, 0.7])
    rows = [
        make_row("a:1", label=label, activation=activation, cluster_weight=weight),
        make_row("a:2", k=1, score=0.25),
        make_dead("a:3"),
    ]
    return open_run(stored(rows))


def test_a_run_is_a_table(run):
    assert run.neurons == ["a:1", "a:2", "a:3"]
    table = run.to_arrow()
    assert table.column_names == list(SHOWN)
    assert table["score"].to_pylist() == [0.5, 0.25, None]
    frame = run.to_pandas(["neuron", "embedding"])
    assert frame.shape == (3, 2)
    assert np.array_equal(np.stack(frame.embedding[0]), run["a:1"].embeddings)
    with pytest.raises(InputError, match=r"scor.*nearest: score"):
        run.to_arrow(["scor"])


def test_pandas_is_asked_for_where_it_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install pandas, or take to_arrow\(\)"):
        run.to_pandas()


def test_a_run_holds_its_neurons(run):
    assert len(run) == 3
    assert [neuron.name for neuron in run] == run.neurons
    assert [neuron.row.q_value for neuron in run] == [0.005, 0.005, None]
    assert "a:2" in run
    assert "a:9" not in run
    assert run[" a : 2 "].name == "a:2"
    with pytest.raises(InputError, match=r"no neuron 'a:9'; nearest: a:"):
        run["a:9"]
    with pytest.raises(InputError, match="is not the directory of a run"):
        open_run(run.run_dir / "neurons")


def test_a_neuron_holds_its_clusters(run):
    neuron = run["a:1"]
    assert (neuron.score, neuron.k, neuron.status) == (0.5, 2, "ok")
    assert neuron.interval == (0.4, 0.6)
    strongest, other = neuron.clusters
    assert (strongest.share, other.share) == (0.7, 0.3)
    assert strongest.indices.tolist() == [2, 4, 0]
    assert strongest.activations.tolist() == [5, 3, 1]
    assert other.indices.tolist() == [5, 1]
    expected = [decode_png(neuron.row.image[i]) for i in (2, 4, 0)]
    assert np.array_equal(strongest.images, np.stack(expected))
    assert strongest.images.dtype == np.uint8
    assert np.array_equal(np.asarray(strongest.pictures[0]), expected[0])
    assert neuron.images.shape == (6, 8, 8, 3)
    assert repr(neuron) == "<a:1: 0.50, 2 clusters in 6 images>"
    dead = run["a:3"]
    assert (dead.score, dead.interval, dead.clusters) == (None, None, [])
    assert dead.images.shape == (0, 0, 0, 3)
    assert repr(dead) == "<a:3: dead>"


class Page(HTMLParser):
    """Collects tags, text and pictures, and fails where tags do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.pictures = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("img", "br", "wbr"):
            self.open.append(tag)
        if tag == "img":
            given = dict(attributes)
            kind, data = given["src"].split(",")
            assert kind == "data:image/jpeg;base64"
            self.pictures.append((Image.open(io.BytesIO(base64.b64decode(data))), given))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_the_strips_of_a_run(run):
    page = Page(run._repr_html_())
    assert page.tags.count("tr") == 2
    assert "3 neurons · median score 0.38 · 1 without a score" in page.text
    assert page.text.index("a:1") < page.text.index("a:2")
    assert "2 clusters in 5 of 6 images" in page.text
    # All images that are valid, at twice the size that they are shown at.
    assert len(page.pictures) == 5 + int((run["a:2"].labels >= 0).sum())
    assert {picture.size for picture, _ in page.pictures} == {(88, 88)}
    assert page.pictures[0][1]["width"] == page.pictures[0][1]["height"] == "44"
    # Those of the strongest cluster first, by their activation.
    order = [given["alt"] for _, given in page.pictures[:5]]
    assert order == [f"a:1: image {i}" for i in (2, 4, 0, 5, 1)]
    page = Page(run["a:1"]._repr_html_())
    assert re.findall(r"70%, 3 images|30%, 2 images|not valid, 1 image", page.text) == [
        "70%, 3 images",
        "30%, 2 images",
        "not valid, 1 image",
    ]
    assert len(page.pictures) == 6
    assert "a:3" in Page(run["a:3"]._repr_html_()).text


def test_names_are_text_in_html(stored):
    row = make_row(NASTY)
    for text in (run_html(stored([row])), neuron_html(row)):
        page = Page(text)
        assert "script" not in page.tags
        assert NASTY in page.text
        assert NASTY in page.pictures[0][1]["alt"]


def test_the_html_of_a_run_is_bounded(stored):
    # Noise is what JPEG compresses least.
    rng = np.random.default_rng(0)
    noise = encode_png(rng.integers(0, 256, (16, 96, 96, 3), dtype=np.uint8))
    rows = [make_row(f"a:{i}", n=16, k=4, score=i / 50, image=noise) for i in range(50)]
    text = run_html(stored(rows))
    page = Page(text)
    assert len(text) < 1.5e6
    assert page.tags.count("tr") == 12
    assert "50 neurons" in page.text
    assert "the 6 most and the 6 least polysemantic" in page.text


def test_an_image_that_is_damaged_is_crossed_out(stored):
    row = make_row("a:1")
    row.image[0] = b"no picture"
    assert len(Page(neuron_html(row)).pictures) >= 1
    assert len(Page(run_html(stored([row]))).pictures) >= 1


def test_a_report_is_written_where_it_is_asked_for(run, tmp_path, capsys):
    page = run.report(tmp_path / "site", pdf=False)
    assert page == tmp_path / "site" / "index.html"
    assert "a:1" in page.read_text()
    assert run.report(pdf=False) == run.run_dir / "report" / "index.html"
    assert capsys.readouterr().out == ""
