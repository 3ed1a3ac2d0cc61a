import dataclasses
import io
import logging
import math
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from example_rows import make_dead, make_row
from PIL import Image

from benchmarks.synthetic import ODD_LAYER, write_synthetic_run
from polylight.errors import InputError
from polylight.photos.store import Photo, PhotoRanking, write_pair
from polylight.report.charts import PALETTE
from polylight.report.content import Cluster, NeuronDetail, Picture, Unreadable
from polylight.report.gather import gather_run, read_details
from polylight.report.paper import lay_out, strip
from polylight.report.pdf import chosen, extremes, write_pdf
from polylight.report.rasters import NOT_VALID, colour, cut, heat_map, image_map, to_jpeg
from polylight.run.store import RunStore

pypdf = pytest.importorskip("pypdf")
pytest.importorskip("typst")


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


def sections_of(tree):
    """Those headings that have neurons below them."""
    return [section for section in tree if section[2]]


def links_of(page):
    return {a.get_object()["/Dest"] for a in page.get("/Annots", [])}


def elements_of(reader):
    """All elements of the structure that screen readers read."""
    todo, found = [reader.trailer["/Root"]["/StructTreeRoot"]], []
    while todo:
        element = todo.pop().get_object()
        children = element.get("/K", []) if isinstance(element, dict) else element
        if isinstance(element, dict) and "/S" in element:
            found.append(element)
        if isinstance(children, list):
            todo += [child for child in children if not isinstance(child, int)]
        elif not isinstance(children, int):
            todo.append(children)
    return found


def lowest_text(page):
    """Where the last text above the foot of a page is; in points from below."""
    found = []

    def visit(text, cm, tm, *_):
        if text.strip():
            found.append(tm[5] * cm[3] + cm[5])

    page.extract_text(visitor_text=visit)
    return min(y for y in found if y > 60)


def files_of(reader):
    """Kinds of the pictures in a document, each once, by what it is."""
    found, seen, todo = [], set(), [page["/Resources"] for page in reader.pages]
    while todo:
        for item in todo.pop().get("/XObject", {}).values():
            if item.idnum in seen:
                continue
            seen.add(item.idnum)
            if item.get_object()["/Subtype"] == "/Image":
                found.append(item.get_object())
            else:
                todo.append(item.get_object().get("/Resources", {}))
    return found


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
    assert tree[0][:2] == ("Result", 0)
    titles = [title for title, _, _ in tree]
    assert titles[1] == "Neurons in this report"
    assert sorted(titles[2:]) == [
        "How it was made", "How to read the numbers", "Least polysemantic", "Most polysemantic",
    ]  # fmt: skip
    assert titles[-1] == "How it was made"
    most, least = sections_of(tree)
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
    most, least = sections_of(tree)
    # A name of many words may be broken over lines, and the first page has two scores of some.
    name, page = next((name, page) for name, page in most[2][5:] if "<" not in name)
    neuron = next(n for n in synthetic.neurons if n.name == name)
    row = words[words.index(name) :]
    assert row.split(name)[1].split()[0] == f"{neuron.values['score']:.3f}"
    low, high = (f"{neuron.values[c]:.2f}" for c in ("score_low", "score_high"))
    assert f"{low} to {high} {neuron.values['separation']:.1f} {neuron.values['k']} " in row
    assert re.match(rf".*? {neuron.values['num_images']} {page + 1} ", row)
    ahead, all_of_them = (
        set().union(*map(links_of, document.pages[:end])) for end in (most[1] + 1, None)
    )
    shown = {name for name, _ in most[2] + least[2]}
    targets = {f"neuron-{n.slug}" for n in synthetic.neurons if n.name in shown}
    assert ahead == all_of_them == targets
    # Each leads to the page that the outline knows.
    pages = dict(most[2] + least[2])
    for neuron in synthetic.neurons:
        if neuron.name in pages:
            target = document.named_destinations[f"neuron-{neuron.slug}"]
            assert document.get_destination_page_number(target) == pages[neuron.name]


def test_metadata_and_tags(synthetic, document):
    assert document.metadata.title == f"{synthetic.name}: polysemanticity of its neurons"
    assert document.metadata.author == "polylight"
    root = document.trailer["/Root"]
    assert root["/Lang"] == "en"
    assert root["/MarkInfo"]["/Marked"]
    assert "pdfuaid" in root["/Metadata"].get_data().decode()
    figures = [element for element in elements_of(document) if element["/S"] == "/Figure"]
    assert len(figures) > 100
    assert all(str(figure["/Alt"]) for figure in figures)


def test_what_no_font_can_show_costs_the_claim_and_not_the_file(tmp_path):
    run = small_run(tmp_path / "run", [make_row("\U000fffff:1")])
    write_pdf(run, tmp_path / "report.pdf")
    root = pypdf.PdfReader(tmp_path / "report.pdf").trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert "pdfuaid" not in root["/Metadata"].get_data().decode()


def test_first_page_shows_both_ends_and_the_last_how_it_was_made(synthetic, texts, tree):
    first, last = texts[0], texts[-1]
    ranked = [synthetic.neurons[p] for section in extremes(synthetic) for p in section.positions]
    for neuron in (*ranked[:5], *ranked[10:15]):
        assert neuron.name.replace(" ", "") in "".join(first.split())
    scores = [n.values["score"] for n in synthetic.neurons if n.values["score"] is not None]
    assert "synthetic" in first
    assert f"{np.median(scores):.3f}" in first
    assert "0" * 32 not in first
    assert tree[-1][1] <= len(texts) - 1
    assert "2" * 32 in "".join(last.split())
    assert synthetic.manifest.settings_hash in "".join(last.split())


def test_the_first_page_has_images_of_every_feature():
    neuron = detail([9, 3, 1], [1, 2, 3])
    tiles = {picture.tile: {"file": picture.tile} for picture in neuron.pictures}
    # Seven: in turn from each, until those of one are used up.
    groups = [[tile["file"] for tile in group] for group in strip(neuron, tiles)]
    assert groups == [[0, 1, 2], [9, 10, 11], [12]]
    invalid = detail([4], [0])
    tiles = {picture.tile: picture.tile for picture in invalid.pictures}
    assert strip(invalid, tiles) == [[0, 1, 2, 3]]


def test_every_image_of_every_neuron_is_there(synthetic, document, tree):
    shown = {title for _, _, below in tree for title, _ in below}
    neurons = [n for n in synthetic.neurons if n.name in shown]
    # The tiles and the map of each; files that are equal are kept once.
    expected = set()
    for neuron in neurons:
        ((_, found),) = read_details(synthetic, [neuron.position])
        images = cut(found)
        expected |= {to_jpeg(image) for image in images} | {image_map(found, images)}
    jpegs = [f.get_data() for f in files_of(document) if f["/Filter"] == "/DCTDecode"]
    assert len(jpegs) == len(expected)
    assert set(jpegs) == expected


def test_a_name_is_text_and_nothing_else(tmp_path):
    name = 'a<img src="file:///etc/hostname">&amp;{{ 7 * 7 }}/../b:1'
    run = small_run(tmp_path / "run", [make_row(name, layer=ODD_LAYER)])
    write_pdf(run, tmp_path / "report.pdf", neurons=[name])
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    ((title, _, neurons),) = sections_of(outline_of(reader))
    assert title == ODD_LAYER
    assert [title for title, _ in neurons] == [name]
    assert "".join(name.split()) in "".join(text_of(reader).split())


@pytest.mark.parametrize(
    "name",
    [
        '#panic("ran"):1',
        "*_$x^2$ = `raw` // [#import] <label> @ref \\ \\u{41} ~ --- ':2",
        "#{json('/etc/hostname')}#eval(\"1\"):3",
        "x" * 300 + ":4",
        "tab\tand\nline\x07\u200f:5",
        "\u6a21\u578b.\U0001f9e0.\u0627\u0644:6",
    ],
)
def test_a_name_cannot_be_markup(tmp_path, name):
    run = small_run(tmp_path / "run #let x = [", [make_row(name, layer="#layer *_$")])
    write_pdf(run, tmp_path / "report.pdf")
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    ((_, _, neurons),) = sections_of(outline_of(reader))
    assert ["".join(title.split()) for title, _ in neurons] == ["".join(name.split())]
    assert reader.metadata.title == "run #let x = [: polysemanticity of its neurons"
    shown = "".join(text_of(reader).split())
    if name.isascii() and name.isprintable():
        assert "".join(name.split()) in shown


def test_a_name_of_no_text_is_shown_as_far_as_it_can_be(tmp_path):
    run = small_run(tmp_path / "run", [make_row("a:1")])
    write_pdf(dataclasses.replace(run, name="run\udcff"), tmp_path / "report.pdf")
    assert pypdf.PdfReader(tmp_path / "report.pdf").metadata.title.startswith("run?: poly")


def test_neurons_are_chosen_by_text_and_come_by_layer(synthetic, tmp_path):
    wanted = [f"{ODD_LAYER}:3", "stage.1:2", " stage.0 : 5", "stage.0:5", "stage.0:1"]
    sections = chosen(synthetic, wanted)
    names = [[synthetic.neurons[p].name for p in section.positions] for section in sections]
    assert sorted(names) == sorted([["stage.0:1", "stage.0:5"], ["stage.1:2"], [f"{ODD_LAYER}:3"]])
    assert {s.title for s in sections} == {"stage.0", "stage.1", ODD_LAYER}
    write_pdf(synthetic, tmp_path / "some.pdf", neurons=wanted)
    tree = outline_of(pypdf.PdfReader(tmp_path / "some.pdf"))
    assert [[title for title, _ in below] for _, _, below in sections_of(tree)] == names


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
    (section,) = sections_of(outline_of(pypdf.PdfReader(tmp_path / "dead.pdf")))
    assert section[2] == [("a:1", 0)]


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


def test_the_renderer_warns_of_nothing(synthetic, tmp_path, caplog, recwarn):
    dead = next(n.name for n in synthetic.neurons if n.values["status"] == "dead")
    with caplog.at_level(logging.WARNING):
        write_pdf(synthetic, tmp_path / "a.pdf", neurons=[dead, "stage.0:1"])
    assert caplog.records == []
    assert list(recwarn) == []


def test_the_same_run_gives_the_same_file(synthetic, tmp_path):
    for name in ("a", "b"):
        write_pdf(synthetic, tmp_path / name, neurons=["stage.0:1", "stage.1:2"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    made = pypdf.PdfReader(tmp_path / "a").metadata.creation_date
    assert made == datetime.fromisoformat(synthetic.manifest.updated).replace(microsecond=0)
    undated = dataclasses.replace(synthetic, manifest=None)
    write_pdf(undated, tmp_path / "c", neurons=["stage.0:1"])
    assert pypdf.PdfReader(tmp_path / "c").metadata.creation_date is None


def test_fonts_are_those_of_the_renderer_and_in_the_file(document):
    fonts = set()
    for page in document.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            (of,) = font.get_object()["/DescendantFonts"]
            descriptor = of.get_object()["/FontDescriptor"]
            assert {"/FontFile2", "/FontFile3"} & set(descriptor)
            fonts.add(font.get_object()["/BaseFont"].split("+")[1].split("-")[0])
    assert "LibertinusSerif" in fonts
    assert fonts <= {"LibertinusSerif", "NewCMMath", "NewCM10", "DejaVuSansMono"}


def test_a_damaged_image_is_a_crossed_tile(tmp_path):
    row = make_row("a:1", n=4, k=1, label=np.zeros(4, np.int32), cluster_weight=np.ones(1))
    broken = dataclasses.replace(row, image=[b"no picture", *row.image[1:]])
    for name, of in (("whole", row), ("broken", broken)):
        run = small_run(tmp_path / name, [of])
        write_pdf(run, tmp_path / f"{name}.pdf")
    found = [
        {f.get_data() for f in files_of(pypdf.PdfReader(tmp_path / f"{name}.pdf")) if "/Width" in f}
        for name in ("whole", "broken")
    ]
    assert len(found[0]) == len(found[1])
    crossed = [Image.open(io.BytesIO(f)) for f in found[1] - found[0] if f.startswith(b"\xff\xd8")]
    (tile,) = [np.asarray(image) for image in crossed if image.width < 100]
    # Grey with light diagonals.
    assert abs(tile[0, tile.shape[1] // 2].astype(int) - 128).max() < 40
    assert tile[0, 0].mean() > tile[0, tile.shape[1] // 2].mean() + 20


def test_photos_stand_beside_the_images_and_a_damaged_one_is_crossed_out(tmp_path):
    buffers = []
    for grey in (40, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (300, 200), (grey,) * 3).save(buffer, "JPEG")
        buffers.append(buffer.getvalue())
    files = [*buffers, b"no picture"]
    photos = [
        Photo(photo=i, name=f"#panic() {i}.jpg", jpeg=jpeg, embedding=np.ones(16, np.float32))
        for i, jpeg in enumerate(files)
    ]
    ranking = PhotoRanking(
        neuron="a:1", num_photos=3, share_below=0.5, photo=[2, 0, 1], activation=[3.0, 2.0, 1.0]
    )
    small_run(tmp_path / "run", [make_row("a:1")])
    write_pair(tmp_path / "run", 0, "key", [photos], [ranking])
    run = gather_run(tmp_path / "run")
    write_pdf(run, tmp_path / "report.pdf")
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    assert "photos that drive it most" in " ".join(text_of(reader).split())
    shown = [Image.open(io.BytesIO(f.get_data())) for f in files_of(reader) if f["/Width"] == 200]
    assert sorted(round(np.asarray(photo).mean()) for photo in shown) == [40, 200]
    assert all(photo.size == (200, 133) for photo in shown)
    alternatives = {str(f.get_object().get("/Alt")) for f in elements_of(reader)}
    assert {f"Photo #panic() {i}.jpg, like feature 1" for i in range(3)} <= alternatives or {
        f"Photo #panic() {i}.jpg, like feature 2" for i in range(3)
    } <= alternatives


def test_no_page_is_half_empty_and_a_small_neuron_is_on_one_page(tmp_path):
    rows = [make_row(f"a:{n}", n=n, k=3, score=n / 1000) for n in (2, 16, 17, 33, 64, 150)]
    rows = [dataclasses.replace(row, label=np.arange(row.num_images) % 3) for row in rows]
    run = small_run(tmp_path / "run", rows)
    write_pdf(run, tmp_path / "report.pdf")
    reader = pypdf.PdfReader(tmp_path / "report.pdf")
    pages = dict(sections_of(outline_of(reader))[0][2])
    texts = ["".join(page.extract_text().split()) for page in reader.pages]
    # What comes last of a neuron is on the page of its name.
    for n in (2, 16, 17):
        text = texts[pages[f"a:{n}"]]
        assert "mapofitsimages" in text[text.index(f"a:{n}") :]
    assert sum(text.count("mapofitsimages") for text in texts) == 6
    for page in reader.pages[:-1]:
        assert lowest_text(page) < 842 / 2


@pytest.mark.parametrize(
    "sizes",
    [[], [1], [16], [8, 5, 3], [1] * 9, [64], [16] * 4, [70, 20, 10], [400, 3, 90], [300] * 8],
)
def test_tiles_are_as_large_as_half_a_page_allows(sizes):
    grid = lay_out(sizes)
    assert [i for row in grid.rows for i in row] == list(range(len(sizes)))
    assert grid.columns * (grid.side + 1.2) == pytest.approx(174 + 1.2)
    height = 0.0
    for row in grid.rows:
        across = sum(sizes[i] for i in row)
        # Only one that stands alone may take more than a row of tiles.
        assert len(row) == 1 or across <= grid.columns
        height += 6.4 + math.ceil(across / grid.columns) * (grid.side + 3.2)
    assert grid.height == pytest.approx(height)
    assert grid.fits == (height <= 49)
    if grid.fits:
        assert 10 <= grid.side <= 18.5
        larger = math.ceil(sum(sizes) / (grid.columns - 1)) if sizes else 0
        side = 175.2 / (grid.columns - 1) - 1.2
        assert side > 18.5 or larger * (side + 3.2) + 6.4 * len(grid.rows) > 49
    else:
        assert 12.9 <= grid.side <= 14
    if sum(sizes) <= 16 and len(sizes) < 4:
        assert grid.fits


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
        frame = rgb(PALETTE[0] if index < 2 else NOT_VALID)
        assert at(x + 42, y + 3) == pytest.approx(frame, abs=14)
    assert at(240, 100) == pytest.approx([244, 245, 247], abs=3)


def test_similarities_are_coloured_by_value_with_gaps_between_clusters():
    similarity = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.0], [-0.3, 0.0, np.nan]])
    drawn = Image.open(io.BytesIO(heat_map(similarity, [2, 1])))
    # Transparent in its gaps, so that it lies on any paper.
    white = Image.new("RGBA", drawn.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, drawn).convert("RGB"))
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
    assert colour(0) == NOT_VALID
    assert NOT_VALID not in PALETTE


def test_a_page_holds_what_its_neuron_has(synthetic, tmp_path):
    neuron = next(n for n in synthetic.neurons if n.values["k"] == 3)
    ((_, found),) = read_details(synthetic, [neuron.position])
    write_pdf(synthetic, tmp_path / "one.pdf", neurons=[neuron.name])
    text = text_of(pypdf.PdfReader(tmp_path / "one.pdf"))
    words = " ".join(text.split())
    for cluster in found.clusters:
        assert f"Feature {cluster.number}" in words
        for picture in cluster.pictures:
            assert f"{picture.activation:.3g}" in text
    assert text.count("◆") == 3
    other = synthetic.neurons[neuron.similar[0].position].name
    assert other.replace(" ", "") in "".join(text.split())
