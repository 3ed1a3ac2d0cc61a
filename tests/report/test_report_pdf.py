import dataclasses
import io
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
from example_rows import make_dead, make_row
from PIL import Image

from benchmarks.synthetic import ODD_LAYER, write_synthetic_run
from polylight.errors import InputError
from polylight.report.charts import PALETTE
from polylight.report.content import Cluster, NeuronDetail, Picture, Unreadable
from polylight.report.gather import gather_run, read_details
from polylight.report.pdf import Pictures, chosen, extremes, lay_out, write_pdf
from polylight.report.rasters import NO_VOTE, colour, cut, heat_map, image_map, to_jpeg
from polylight.run.store import RunStore

pypdf = pytest.importorskip("pypdf")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain & <b>bold"
    write_synthetic_run(folder, neurons=48, images=6, layers=3, size=24)
    return gather_run(folder)


@pytest.fixture(scope="module")
def document(synthetic, tmp_path_factory):
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    write_pdf(synthetic, path)
    return pypdf.PdfReader(path)


@pytest.fixture(scope="module")
def texts(document):
    return [page.extract_text() for page in document.pages]


@pytest.fixture(scope="module")
def tree(document):
    return outline_of(document)


def small_run(folder, rows):
    store = RunStore(folder)
    store.append(rows)
    store.close()
    return gather_run(folder)


def text_of(reader):
    return "\n".join(page.extract_text() for page in reader.pages)


def outline_of(reader):
    """Headings, each with the page and the headings below it."""
    tree = []
    for entry in reader.outline:
        if isinstance(entry, list):
            tree[-1][2].extend((e.title, reader.get_destination_page_number(e)) for e in entry)
        else:
            tree.append((entry.title, reader.get_destination_page_number(entry), []))
    return tree


def detail(sizes, numbers, tile=8):
    """A neuron whose sheet has a tile of one grey each, four tiles a row."""
    count = sum(sizes)
    sheet = Image.new("RGB", (4 * tile, -(-count // 4) * tile))
    clusters, at = [], 0
    for size, number in zip(sizes, numbers, strict=True):
        pictures = []
        for i in range(size):
            grey = 20 + 10 * at
            left, top = at % 4 * tile, at // 4 * tile
            sheet.paste((grey, grey, grey), (left, top, left + tile, top + tile))
            place = at / max(count - 1, 1)
            pictures.append(
                Picture(tile=at, image=at, activation=1.0, is_medoid=i == 0, x=place, y=1 - place)
            )
            at += 1
        clusters.append(Cluster(number=number, weight=1.0 if number else None, pictures=pictures))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=95)
    return NeuronDetail(
        clusters=clusters,
        similarity=np.eye(count),
        bic=[1.0],
        sheet=buffer.getvalue(),
        columns=4,
        tile=tile,
        thumb=b"",
        thumbs=0,
    )


def test_outline_has_both_ends_and_their_neurons_in_order(synthetic, tree, texts):
    scored = [n for n in synthetic.neurons if n.values["score"] is not None]
    ranked = [n.name for n in sorted(scored, key=lambda n: (-n.values["score"], n.name))]
    summary, most, least = tree
    assert (summary[0], summary[1]) == ("Summary", 0)
    assert (most[0], [title for title, _ in most[2]]) == ("Most polysemantic", ranked[:10])
    assert (least[0], [t for t, _ in least[2]]) == ("Least polysemantic", ranked[:-11:-1])
    # They lead to where the neurons are.
    for title, page in most[2] + least[2]:
        shown = "".join(texts[page].split())
        assert "".join(title.split()) in shown
    pages = [page for _, page in most[2] + least[2]]
    assert pages == sorted(pages)
    assert pages[0] > 0


def test_pages_are_numbered_and_carry_the_name_of_the_run(synthetic, document, texts):
    for number, text in enumerate(texts, 1):
        assert re.search(rf"\b{number} / {len(texts)}\b", text)
        assert synthetic.name in text
    # A4, in points.
    size = [float(x) for x in document.pages[0].mediabox[2:]]
    assert size == pytest.approx([595.28, 841.89], abs=0.01)


def test_table_of_the_summary_names_scores_and_pages(synthetic, document, texts, tree):
    words = " ".join(" ".join(texts).split())
    _, most, least = tree
    # A name of many words may be broken over lines.
    name, page = next((name, page) for name, page in most[2] if "<" not in name)
    neuron = next(n for n in synthetic.neurons if n.name == name)
    row = words[words.index(name) :]
    assert row.split(name)[1].split()[0] == f"{neuron.values['score']:.3f}"
    low, high = (f"{neuron.values[c]:.2f}" for c in ("score_low", "score_high"))
    assert f"{low} to {high} {neuron.values['k']} " in row
    assert re.match(rf".*? {neuron.values['num_images']} {page + 1} ", row)
    summary = document.pages[: most[1]]
    links = [a.get_object() for page in summary for a in page.get("/Annots", [])]
    targets = {link["/Dest"] for link in links if link["/Subtype"] == "/Link"}
    shown = {name for name, _ in most[2] + least[2]}
    assert targets == {f"neuron-{n.slug}" for n in synthetic.neurons if n.name in shown}


def test_metadata_and_tags(synthetic, document):
    assert document.metadata.title == f"{synthetic.name}: polysemanticity of its neurons"
    assert document.metadata.author == "polylight"
    root = document.trailer["/Root"]
    assert root["/Lang"] == "en"
    assert root["/MarkInfo"]["/Marked"]
    assert "pdfuaid" in root["/Metadata"].get_data().decode()


def test_every_image_of_every_neuron_is_there(synthetic, document, tree):
    shown = {title for _, _, below in tree for title, _ in below}
    neurons = [n for n in synthetic.neurons if n.name in shown]
    charts = sum(n.values["num_images"] > 1 for n in neurons) * 2
    files = {}
    for page in document.pages:
        for name, item in page["/Resources"]["/XObject"].items():
            if item.get_object().get("/Subtype") == "/Image":
                files[name.encode()] = item.get_object()
    jpegs = sum(file["/Filter"] == "/DCTDecode" for file in files.values())
    # The tiles and the map of each; the renderer keeps each file once.
    assert jpegs == sum(n.values["num_images"] for n in neurons) + charts // 2
    drawn = [
        name
        for page in document.pages
        for name in re.findall(rb"(/\S+) Do\b", page.get_contents().get_data())
        if name in files
    ]
    assert sorted(drawn) == sorted(files)
    assert len(drawn) == jpegs + charts // 2


def test_a_name_is_text_and_nothing_else(tmp_path):
    name = 'a<img src="file:///etc/hostname">&amp;{{ 7 * 7 }}/../b:1'
    run = small_run(tmp_path / "run", [make_row(name, layer=ODD_LAYER)])
    write_pdf(run, tmp_path / "report.pdf", neurons=[name])
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    ((_, _, neurons),) = outline_of(reader)[1:]
    assert [title for title, _ in neurons] == [name]
    assert outline_of(reader)[1][0] == ODD_LAYER
    assert "".join(name.split()) in "".join(text_of(reader).split())


def test_neurons_are_chosen_by_text_and_come_by_layer(synthetic, tmp_path):
    wanted = [f"{ODD_LAYER}:3", "stage.1:2", " stage.0 : 5", "stage.0:5", "stage.0:1"]
    sections = chosen(synthetic, wanted)
    names = [[synthetic.neurons[p].name for p in section.positions] for section in sections]
    assert sorted(names) == sorted([["stage.0:1", "stage.0:5"], ["stage.1:2"], [f"{ODD_LAYER}:3"]])
    assert {s.title for s in sections} == {"stage.0", "stage.1", ODD_LAYER}
    write_pdf(synthetic, tmp_path / "some.pdf", neurons=wanted)
    tree = outline_of(pypdf.PdfReader(tmp_path / "some.pdf"))
    assert [[title for title, _ in below] for _, _, below in tree[1:]] == names


def test_a_neuron_that_is_not_there_is_named_before_any_work(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr("polylight.report.pdf.read_details", None)
    with pytest.raises(InputError, match=r"neuron 'stage\.0:15x' is not in .*nearest: stage\.0:15"):
        write_pdf(synthetic, tmp_path / "none.pdf", neurons=["stage.0:15x"])
    with pytest.raises(InputError, match="no neuron is given"):
        write_pdf(synthetic, tmp_path / "none.pdf", neurons=[])
    assert not list(tmp_path.iterdir())


def test_few_neurons_are_one_section_and_none_is_twice(tmp_path):
    rows = [make_row(f"a:{i}", score=0.1 + 0.03 * (7 * i % 20)) for i in range(20)]
    run = small_run(tmp_path, [*rows, make_dead("a:20")])
    (section,) = extremes(run)
    scores = [run.neurons[p].values["score"] for p in section.positions]
    assert scores == sorted((row.score for row in rows), reverse=True)
    more = small_run(tmp_path, [make_row("a:21", score=0.09)])
    most, least = extremes(more)
    assert (len(most.positions), len(least.positions)) == (10, 10)
    assert more.neurons[least.positions[0]].name == "a:21"
    assert not {*most.positions} & {*least.positions}


def test_a_run_without_scores_still_has_a_report(tmp_path):
    run = small_run(tmp_path / "run", [make_dead(f"a:{i}") for i in range(3)])
    write_pdf(run, tmp_path / "dead.pdf")
    text = text_of(pypdf.PdfReader(tmp_path / "dead.pdf"))
    assert "No neuron of this run has a score." in text
    assert "no manifest" in text
    # One that is asked for is shown, without an image.
    write_pdf(run, tmp_path / "dead.pdf", neurons=["a:1"])
    tree = outline_of(pypdf.PdfReader(tmp_path / "dead.pdf"))
    assert tree[1][2] == [("a:1", 1)]


def test_what_could_not_be_read_is_named(synthetic, tmp_path):
    lost = Unreadable(path=Path("neurons/part-00000-000001.parquet"), reason="not <Parquet>")
    run = dataclasses.replace(synthetic, unreadable=[lost], state="interrupted")
    write_pdf(run, tmp_path / "report.pdf", neurons=["stage.0:1"])
    text = " ".join(text_of(pypdf.PdfReader(tmp_path / "report.pdf")).split())
    assert "neurons/part-00000-000001.parquet (not <Parquet>)" in text
    assert "interrupted" in text


def test_a_failure_leaves_the_earlier_file(synthetic, tmp_path, monkeypatch):
    path = tmp_path / "report.pdf"
    path.write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise OSError("no room")

    monkeypatch.setattr("polylight.run.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="no room"):
        write_pdf(synthetic, path, neurons=["stage.0:1"])
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_renderer_warns_of_nothing_and_asks_for_nothing_else(synthetic, tmp_path, caplog):
    dead = next(n.name for n in synthetic.neurons if n.values["status"] == "dead")
    with caplog.at_level(logging.WARNING):
        write_pdf(synthetic, tmp_path / "a.pdf", neurons=[dead, "stage.0:1"])
    assert caplog.records == []
    pictures = Pictures()
    address = pictures.add(b"one", "image/png")
    answer = pictures.fetch(address)
    assert (answer.read(), answer.content_type) == (b"one", "image/png")
    for url in ("https://example.org/a.png", "file:///etc/hostname", "data:,a", "memory:9"):
        with pytest.raises(BaseException, match="a report loads nothing"):
            pictures.fetch(url)


def test_no_neuron_is_cut_between_pages(tmp_path):
    rows = [make_row(f"a:{n}", n=n, k=3, score=n / 1000) for n in (2, 16, 33, 64, 150)]
    run = small_run(tmp_path / "run", rows)
    write_pdf(run, tmp_path / "report.pdf")
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    pages = [p for _, p in outline_of(reader)[1][2]]
    texts = ["".join(page.extract_text().split()) for page in reader.pages]
    # What comes last of a neuron is on the page of its name, and no page is without a name.
    assert sum(text.count("mapofitsimages") for text in texts) == 5
    assert [texts[p].count("mapofitsimages") for p in pages] == [pages.count(p) for p in pages]
    assert pages[-1] == len(reader.pages) - 1


@pytest.mark.parametrize(
    "sizes",
    [[], [1], [16], [8, 5, 3], [1] * 9, [64], [16] * 4, [70, 20, 10], [400, 3, 90], [300] * 8],
)
def test_tiles_are_as_large_as_the_page_allows(sizes):
    grid = lay_out(sizes)
    assert grid.height <= 165
    assert 8 <= grid.side <= 18.5
    assert len(grid.blocks) == len(sizes)
    step = grid.side + 1.2
    taken = set()
    for size, block in zip(sizes, grid.blocks, strict=True):
        assert 1 <= block.shown <= size
        assert block.left + block.width <= 174 + 1e-9
        across = round((block.width + 1.2) / step)
        assert across == min(size, grid.columns)
        rows = math.ceil(block.shown / across)
        bottom = block.top + 5 + rows * (grid.side + 3.2)
        assert bottom <= grid.height
        cells = {(round(block.left / step) + i, round(block.top, 6)) for i in range(across)}
        assert not cells & taken
        taken |= cells
    if sum(sizes) <= 100:
        assert [block.shown for block in grid.blocks] == sizes
    if sum(sizes) <= 16:
        assert grid.height <= 56
    # What is left out is left out of the largest.
    cut_at = max((b.shown for b in grid.blocks), default=0)
    assert all(b.shown == min(size, cut_at) for size, b in zip(sizes, grid.blocks, strict=True))


def test_tiles_are_cut_where_they_are_on_the_sheet():
    found = cut(detail([3, 2, 1], [1, 2, 0]))
    assert [tile.size for tile in found] == [(8, 8)] * 6
    means = [np.asarray(tile).mean() for tile in found]
    assert means == pytest.approx([20, 30, 40, 50, 60, 70], abs=1.0)
    assert cut(dataclasses.replace(detail([1], [1]), sheet=b"")) == []
    large = detail([2], [1], tile=640)
    assert [tile.size for tile in cut(large)] == [(200, 200)] * 2
    assert Image.open(io.BytesIO(to_jpeg(found[0]))).size == (8, 8)


def test_map_has_each_image_at_its_place_in_its_colour():
    neuron = detail([2, 1], [1, 0])
    canvas = np.asarray(Image.open(io.BytesIO(image_map(neuron, cut(neuron)))).convert("RGB"))
    assert canvas.shape == (480, 480, 3)

    def at(x, y):
        return canvas[y, x].astype(int)

    def rgb(text):
        return [int(text[i : i + 2], 16) for i in (1, 3, 5)]

    # From bottom left to top right: the middle of a tile, and its frame.
    for index, (x, y) in enumerate([(0, 396), (198, 198), (396, 0)]):
        assert at(x + 42, y + 42) == pytest.approx([20 + 10 * index] * 3, abs=4)
        frame = rgb(PALETTE[0] if index < 2 else NO_VOTE)
        assert at(x + 42, y + 3) == pytest.approx(frame, abs=14)
    assert at(240, 100) == pytest.approx([244, 245, 247], abs=3)


def test_similarities_are_coloured_by_value_with_gaps_between_clusters():
    similarity = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.0], [-0.3, 0.0, np.nan]])
    pixels = np.asarray(Image.open(io.BytesIO(heat_map(similarity, [2, 1]))))
    cell, gap = 133, 44
    assert pixels.shape == (3 * cell + gap, 3 * cell + gap, 3)
    middles = [66, cell + 66, 2 * cell + gap + 66]
    found = {(i, j): tuple(pixels[middles[i], middles[j]]) for i in range(3) for j in range(3)}
    # Viridis at 1, at 0.5 and at 0, from its definition.
    assert found[0, 0] == found[1, 1] == (253, 231, 37)
    assert found[0, 1] == found[1, 0] == (33, 145, 140)
    assert found[1, 2] == found[0, 2] == (68, 1, 84)
    assert found[2, 2] == (255, 255, 255)
    assert (pixels[2 * cell : 2 * cell + gap] == 255).all()
    assert (pixels[:, 2 * cell : 2 * cell + gap] == 255).all()


def test_colours_begin_again_after_the_last():
    assert [colour(n) for n in (1, 8, 9)] == [PALETTE[0], PALETTE[7], PALETTE[0]]
    assert colour(0) == NO_VOTE
    assert NO_VOTE not in PALETTE


def test_a_page_holds_what_its_neuron_has(synthetic, tmp_path):
    neuron = next(n for n in synthetic.neurons if n.values["k"] == 3)
    ((_, found),) = read_details(synthetic, [neuron.position])
    write_pdf(synthetic, tmp_path / "one.pdf", neurons=[neuron.name])
    text = pypdf.PdfReader(tmp_path / "one.pdf").pages[-1].extract_text()
    words = " ".join(text.split())
    for cluster in found.clusters:
        assert f"{cluster.number} {100 * cluster.weight:.0f} %" in words
        for picture in cluster.pictures:
            assert f"{picture.activation:.3g}" in text
    assert text.count("◆") == 3
    other = synthetic.neurons[neuron.similar[0].position].name
    assert other.replace(" ", "") in "".join(text.split())
