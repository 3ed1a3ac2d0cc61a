import logging

import numpy as np
import pytest
from example_rows import make_dead, make_row
from PIL import Image, ImageDraw

from polylight.inspect.contact_sheet import (
    WIDTH,
    ShownCluster,
    contact_sheet,
    extreme_rows,
    shown_clusters,
)
from polylight.run.png import encode_png
from polylight.run.store import RunStore

LONG = "max(features.denseblock3.denselayer12.conv2:1024,features.denseblock4.denselayer1.conv2:77)"
MARGIN = 36


def plain_row(name, score, labels, weights):
    """Image i is all of the grey level 10 * i; later images have higher activation."""
    n = len(labels)
    images = np.broadcast_to(
        (10 * np.arange(n, dtype=np.uint8))[:, None, None, None], (n, 32, 32, 3)
    )
    return make_row(
        name,
        n=n,
        k=len(weights),
        score=score,
        label=np.array(labels, np.int32),
        cluster_weight=np.array(weights),
        activation=np.arange(n, dtype=np.float32),
        image=encode_png(images),
    )


def opened(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.fixture
def sheet(tmp_path):
    return tmp_path / "sheet.png"


@pytest.fixture
def said(monkeypatch):
    """Every text that is drawn, and where it ends, in pixels of the sheet."""
    texts = []
    draw = ImageDraw.ImageDraw.text

    def text(self, at, line, fill, font):
        texts.append((line, (at[0] + font.getlength(line)) / 2))
        draw(self, at, line, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def strips(path):
    """Read back the images of each strip of a sheet, those in one frame together."""
    found = []
    for row in opened(path)[:, 250:].astype(int):
        starts = np.flatnonzero(np.any(np.diff(row, axis=0, prepend=-1), axis=1))
        lengths = np.diff(starts, append=len(row))
        frames = [[]]
        for start, length in zip(starts, lengths, strict=True):
            red, green, blue = row[start]
            if length > 20 and red == green == blue and red % 10 == 0:
                frames[-1].append(int(red) // 10)
            elif red == green == blue > 250:
                frames.append([])
        frames = [frame for frame in frames if frame]
        if frames and frames not in found[-1:]:
            found.append(frames)
    return found


def test_the_sheet_shows_the_strongest_images_by_cluster(sheet, said):
    # Two thirds of nine places go to cluster 1 and the one image that is not valid is left out.
    row = plain_row("a:0", 0.4, [0, 1, 1, 0, 1, 1, 1, -1, 0, 1, 0, 1, 1], [1 / 3, 2 / 3])
    contact_sheet([row], sheet, tiles=9)
    assert strips(sheet) == [[[12, 11, 9, 6, 5, 4], [10, 8, 3]]]
    texts = [text for text, _ in said]
    assert "67%  +2" in texts
    assert "33%  +1" in texts
    assert "2 clusters in 12 of 13 images" in texts


def test_every_cluster_has_a_place_and_none_more_than_it_has_images(sheet):
    row = plain_row("a:0", 0.4, [0, 0, 0, 0, 0, 1, 2, 2], [0.9, 0.05, 0.05])
    contact_sheet([row], sheet, tiles=9)
    assert strips(sheet) == [[[4, 3, 2, 1, 0], [5], [7, 6]]]
    contact_sheet([row], sheet, tiles=3)
    assert strips(sheet) == [[[4], [5], [7]]]
    expected = [ShownCluster(0, [4], 4), ShownCluster(1, [5], 0), ShownCluster(2, [7], 1)]
    assert shown_clusters(row, 3) == (expected, 0)


def test_clusters_without_a_place_are_counted(sheet, said):
    labels = [i % 12 for i in range(24)]
    weights = np.linspace(1, 12, 12) / 78
    row = plain_row("a:0", 0.4, labels, weights)
    contact_sheet([row], sheet, tiles=9)
    assert strips(sheet) == [[[23], [22], [21], [20], [19], [18], [17], [16]]]
    texts = [text for text, _ in said]
    assert texts.count("+4") == texts.count("clusters") == 1
    assert "15%  +1" in texts
    clusters, hidden = shown_clusters(row, 9)
    assert ([shown.cluster for shown in clusters], hidden) == ([11, 10, 9, 8, 7, 6, 5, 4], 4)
    assert shown_clusters(row, 12)[1] == 0


def test_no_colour_tells_clusters_apart(sheet):
    row = plain_row("a:0", 0.4, [0, 1, 2, 3, 4, 5, 6, 7], [1 / 8] * 8)
    contact_sheet([row, plain_row("a:1", 0.3, [0], [1.0])], sheet)
    pixels = opened(sheet).astype(int)
    assert np.ptp(pixels, axis=-1).max() < 40
    # And no corner is clear: many a viewer shows that as black.
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


def test_the_sheet_has_both_ends_and_grows_with_its_rows(tmp_path, sheet):
    rows = [plain_row(f"a:{i}", i / 20, [0] * (i + 1), [1.0]) for i in range(9)]
    heights = []
    for count in (1, 2, 3):
        contact_sheet([*rows, make_dead()], sheet, count=count)
        heights.append(len(opened(sheet)))
    assert heights[2] - heights[1] == heights[1] - heights[0] > 2 * 80
    lengths = [len(frame) for (frame,) in strips(sheet)]
    assert lengths == [9, 8, 7, 3, 2, 1]
    contact_sheet(rows, sheet, count=3, title="Of everything")
    assert len(opened(sheet)) > heights[2]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("tiles", [2, 9, 12, 16])
def test_a_sheet_is_as_wide_as_it_says_and_nothing_leaves_it(sheet, said, tiles):
    long = make_row(LONG, n=24, k=12, label=np.arange(24, dtype=np.int32) % 12)
    unbroken = make_row("x" * 90 + ":3", image=long.image[:6])
    contact_sheet([long, unbroken, make_row("x")], sheet, tiles=tiles, title="O" * 200)
    pixels = opened(sheet)
    assert pixels.shape[1] == WIDTH == 1200
    # Reduced, edges are a little soft.
    assert pixels[:, : MARGIN - 3].min() >= 250
    assert pixels[:, 3 - MARGIN :].min() >= 250
    assert max(end for _, end in said) <= WIDTH - MARGIN
    # The whole of a name is there, and ends before the images begin.
    assert LONG in "".join(text for text, _ in said)
    assert max(end for text, end in said if text in LONG or set(text) == {"x"}) < MARGIN + 216


def test_names_are_drawn_not_obeyed(sheet, said):
    contact_sheet([make_row("a\x1b[31m\nb:1")], sheet)
    assert r"a\x1b[31m\nb:1" in [text for text, _ in said]


def test_a_damaged_image_is_crossed_out_and_named(sheet, caplog):
    row = plain_row("a:0", 0.4, [0, 0, 0, 0], [1.0])
    flipped = bytearray(row.image[2])
    flipped[50] ^= 1
    huge = (60_000).to_bytes(4) * 2
    images = [row.image[0], b"", bytes(flipped), row.image[3][:16] + huge + row.image[3][24:]]
    row = plain_row("a:0", 0.4, [0, 0, 0, 0], [1.0])
    with caplog.at_level(logging.WARNING, "polylight.inspect.contact_sheet"):
        contact_sheet([make_row("a:0", n=4, k=1, **kept(row, images))], sheet)
    assert strips(sheet) == [[[0]]]
    assert [message.split(" is crossed out: ")[0] for message in caplog.messages] == [
        f"image {image} of neuron a:0" for image in (3, 2, 1)
    ]


def kept(row, images):
    names = ("label", "activation", "cluster_weight")
    return {"image": images, **{name: getattr(row, name) for name in names}}


def test_a_sheet_of_nothing_is_refused(sheet):
    with pytest.raises(ValueError, match="at least one neuron with a score and images"):
        contact_sheet([make_dead()], sheet)


def test_a_sheet_can_be_by_another_score(tmp_path, sheet, said):
    rows = [make_row(f"a:{i}", score=0.1 * i, score_paper=0.9 - 0.1 * i) for i in range(4)]
    RunStore(tmp_path).append([*rows, make_row("a:9", score_paper=None)])
    ends = extreme_rows(tmp_path, 1, "score_paper")
    assert [row.neuron for row in ends] == ["a:0", "a:3"]
    contact_sheet(rows, sheet, count=1, score="score_paper")
    texts = [text for text, _ in said]
    assert "most polysemantic by the Alic et al. (2025) score" in texts
    assert [text for text in texts if text.startswith("a:")] == ["a:0", "a:3"]
    assert "0.90" in texts
    assert "0.60" in texts
    # It has no interval.
    assert not [text for text in texts if " - " in text]


def test_only_the_ends_are_read_from_a_run(tmp_path):
    store = RunStore(tmp_path)
    scores = [0.3, 0.9, 0.1, 0.5, 0.7]
    store.append([make_row(f"a:{s}", score=s) for s in scores])
    store.append([make_dead()])
    assert [row.score for row in extreme_rows(tmp_path, 1)] == [0.9, 0.1]
    assert [row.score for row in extreme_rows(tmp_path, 9)] == sorted(scores, reverse=True)
