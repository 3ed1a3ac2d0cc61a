import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from example_rows import make_dead, make_row
from matplotlib import colormaps
from PIL import Image, ImageFile
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info, threadpool_limits

from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.report.detail import image_map, neuron_detail
from polylight.report.gather import THUMB, gather_run, read_details
from polylight.report.rasters import (
    MOST_PIXELS,
    draw_sheet,
    draw_strip,
    heat_map,
    heat_map_bands,
    read_pictures,
)
from polylight.report.vectors import cluster_centres, most_similar
from polylight.report.words import slug
from polylight.run.manifest import Manifest, write_manifest
from polylight.run.store import RunStore, read_run


def png(colour, size=(8, 8), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def grainy():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def flipped(file, place):
    return file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :]


GRAINY = grainy()
PART = Path("part-00000-000000.parquet")


def make_manifest(**changes):
    return Manifest(device={"name": "cpu"}, seed=0, settings={"precision": "float32"}, **changes)


def write(path, *rows, rank=0):
    store = RunStore(path, rank)
    store.append(rows)
    store.close()


def normalised(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_neurons_come_by_layer_then_channel_and_composites_last(tmp_path):
    def named(name, layer, channel):
        return make_row(name, layer=layer, channel=channel, n=2)

    write(
        tmp_path,
        named("max(b:1,a:1)", "b,a", None),
        named("b:10", "b", 10),
        named("max(b:10,b:3)", "b", None),
        named("max(b:9,b:3)", "b", None),
    )
    write(tmp_path, named("a:1", "a", 1), named("b:9", "b", 9), named("-b:9", "b", 9), rank=1)
    run = gather_run(tmp_path)
    names = ["-b:9", "b:9", "b:10", "max(b:9,b:3)", "max(b:10,b:3)", "a:1", "max(b:1,a:1)"]
    assert [neuron.name for neuron in run.neurons] == names
    assert [neuron.position for neuron in run.neurons] == list(range(7))
    assert [(layer.name, list(layer.positions)) for layer in run.layers] == [
        ("b", [0, 1, 2, 3, 4]),
        ("a", [5]),
        ("b,a", [6]),
    ]


def test_numbers_are_those_of_the_run_and_q_values_of_what_is_there(tmp_path):
    rows = [
        make_row(f"a:{i}", layer="a", p_value=p, q_value=None)
        for i, p in enumerate([0.01, 0.04, None, 0.03, 0.005])
    ]
    rows[1] = dataclasses.replace(rows[1], coverage=float("nan"))
    write(tmp_path, *rows, make_dead("a:7"))
    run = gather_run(tmp_path)
    found = {neuron.name: neuron for neuron in run.neurons}
    for values in read_run(tmp_path).to_pylist():
        neuron = found[values["neuron"]]
        for name, value in neuron.values.items():
            expected = None if values[name] != values[name] else values[name]
            assert value == expected, name
    assert found["a:1"].values["coverage"] is None
    assert found["a:0"].values["q_value"] == pytest.approx(0.02)
    for row in rows:
        assert found[row.neuron].median_activation == pytest.approx(np.median(row.activation))
    assert found["a:7"].median_activation is None
    assert run.name == tmp_path.name
    assert run.path == tmp_path


def test_of_a_neuron_written_twice_the_first_wins(tmp_path):
    write(tmp_path, make_row("a:0", score=0.75, n=3), rank=1)
    write(tmp_path, make_row("a:0", score=0.25, n=2))
    run = gather_run(tmp_path)
    assert [neuron.values["score"] for neuron in run.neurons] == [0.25]
    assert [len(detail.pictures) for _, detail in read_details(run)] == [2]


def test_parts_that_cannot_be_read_are_listed_and_the_rest_is_shown(tmp_path):
    store = RunStore(tmp_path)
    paths = [store.append([make_row(f"a:{i}", n=2)]) for i in range(4)]
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    old = pq.read_table(paths[2]).replace_schema_metadata({"polylight": '{"schema_version": 1}'})
    pq.write_table(old, paths[2])
    (tmp_path / "manifest.json").write_text("{")
    run = gather_run(tmp_path)
    assert [neuron.name for neuron in run.neurons] == ["a:1", "a:3"]
    assert [part.path for part in run.unreadable] == [
        paths[0],
        paths[2],
        tmp_path / "manifest.json",
    ]
    assert "magic bytes" in run.unreadable[0].reason
    assert "schema version 1, but this polylight knows version 4" in run.unreadable[1].reason
    assert "is not a manifest" in run.unreadable[2].reason
    assert run.state == "unknown"
    assert [summary.name for summary, _ in read_details(run)] == ["a:1", "a:3"]


def test_a_run_of_which_nothing_can_be_shown_says_why(tmp_path):
    with pytest.raises(InputError, match=r"expected the directory of a run, but .* is none"):
        gather_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not the directory of a run: expected neurons/part-"):
        gather_run(tmp_path)
    store = RunStore(tmp_path)
    with pytest.raises(InputError, match="holds no finished neuron yet"):
        gather_run(tmp_path)
    for i in range(2):
        store.append([make_row(f"a:{i}")]).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"part-00000-000000.parquet and 1 more: .*restore"):
        gather_run(tmp_path)


def test_the_cost_of_all_ranks_is_added_and_the_least_finished_rank_counts(tmp_path):
    write(tmp_path, make_row())
    write_manifest(
        tmp_path,
        make_manifest(
            status="finished",
            neurons={"total": 3, "finished": 3, "failed": 0, "dead": 1},
            image_steps=100,
            seconds={"ascent": 2.0, "total": 3.0},
            updated="2026-01-01T00:00:00+00:00",
        ),
    )
    assert gather_run(tmp_path).state == "finished"
    write_manifest(
        tmp_path,
        make_manifest(
            status="interrupted",
            neurons={"total": 2, "finished": 1, "failed": 1, "dead": 0},
            image_steps=50,
            seconds={"ascent": 1.0, "total": 2.0, "write": 0.5},
            updated="2026-01-02T00:00:00+00:00",
        ),
        rank=4,
    )
    run = gather_run(tmp_path)
    assert run.state == run.manifest.status == "interrupted"
    assert run.manifest.neurons == {"total": 5, "finished": 4, "failed": 1, "dead": 1}
    assert run.manifest.image_steps == 150
    assert run.manifest.seconds == {"ascent": 3.0, "total": 5.0, "write": 0.5}
    assert run.manifest.updated == "2026-01-02T00:00:00+00:00"


def test_embeddings_of_two_embedders_are_not_compared(tmp_path):
    other = np.ones((6, 8), np.float32)
    write(tmp_path, make_row("a:0"), make_row("a:1", embedding=other))
    with pytest.raises(InputError, match="embeddings of 8, 16 dimensions, but a run has one"):
        gather_run(tmp_path)


def test_similar_neurons_share_a_cluster_by_brute_force(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        label = np.array([0, 0, 1, 1, 2, -1], np.int32)
        embedding = rng.normal(size=(6, 16)).astype(np.float32)
        embedding[-1] = 1e6
        rows.append(make_row(f"a:{i}", channel=i, label=label, embedding=embedding, k=3))
    write(tmp_path, *rows, make_dead("a:99"))
    run = gather_run(tmp_path)
    centres = []
    for row in rows:
        unit = normalised(row.embedding.astype(np.float64))
        centres.append(normalised(np.stack([unit[row.label == k].mean(0) for k in range(3)])))
    for i, neuron in enumerate(run.neurons[:12]):
        cosine = {j: (centres[i] @ centres[j].T).max() for j in range(12) if j != i}
        nearest = sorted(cosine, key=lambda j: -cosine[j])[:6]
        assert [other.position for other in neuron.similar] == nearest
        assert [other.cosine for other in neuron.similar] == pytest.approx(
            [cosine[j] for j in nearest], abs=1e-6
        )
    assert run.neurons[12].similar == ()


@pytest.mark.parametrize("block", [1, 5, 512])
def test_similarity_does_not_depend_on_blocks(monkeypatch, block):
    monkeypatch.setattr("polylight.report.vectors._BLOCK", block)
    rng = np.random.default_rng(1)
    centres = [normalised(rng.normal(size=(k, 9))) for k in (2, 0, 7, 1, 1, 3, 0, 8)]
    found = most_similar(centres, 3)
    for i, own in enumerate(centres):
        others = [j for j in range(8) if j != i and len(centres[j]) and len(own)]
        best = sorted(others, key=lambda j: -(own @ centres[j].T).max())[:3]
        assert [other.position for other in found[i]] == best


def test_embeddings_are_compared_from_the_mean_that_the_run_kept(tmp_path):
    rng = np.random.default_rng(3)
    embedding = rng.normal(size=(2, 6, 16)).astype(np.float32) + 5
    label = np.array([0, 0, 0, 1, 1, -1], np.int32)
    below = [rng.normal(size=(6, 4)).astype(np.float32), np.zeros((6, 0), np.float32)]
    rows = [
        make_row(f"a:{i}", n=6, k=2, label=label, embedding=embedding[i], layer_input=below[i])
        for i in range(2)
    ]
    write(tmp_path, *rows)
    mean = torch.full((16,), 5.0)
    Reference("key", mean, {"a": mean + 1}, {"a": mean + 2}).save(
        tmp_path / "reference.safetensors"
    )
    run = gather_run(tmp_path)
    unit = normalised(embedding.astype(np.float64) - 5)
    # The mean of how alike images are to the embedder and to the layer below, if there is one.
    alike = [one @ one.T for one in unit]
    alike[0] = (alike[0] + normalised(below[0]) @ normalised(below[0]).T) / 2
    details = zip(read_details(run), unit, unit[::-1], alike, strict=True)
    for (summary, detail), own, other, cosine in details:
        images = [picture.image for picture in detail.pictures]
        expected = cosine[np.ix_(images, images)]
        np.testing.assert_allclose(detail.similarity, expected, atol=1e-6)
        assert detail.similarity.min() < 0.5
        means = [
            normalised(np.stack([one[label == k].mean(0) for k in (0, 1)])) for one in (own, other)
        ]
        nearest = (means[0] @ means[1].T).max()
        assert summary.similar[0].cosine == pytest.approx(nearest, abs=1e-5)


def test_a_mean_that_cannot_be_read_is_named_and_embeddings_stay_raw(tmp_path):
    write(tmp_path, make_row("a:0", n=4))
    (tmp_path / "reference.safetensors").write_bytes(b"no reference")
    run = gather_run(tmp_path)
    assert run.centre is None
    assert [lost.path.name for lost in run.unreadable] == ["reference.safetensors"]
    assert len(list(read_details(run))) == 1


def test_equally_similar_neurons_come_by_position_and_a_lone_one_has_none():
    same = np.eye(4)[:1]
    assert [s.position for s in most_similar([same] * 5, 2)[3]] == [0, 1]
    assert [s.cosine for s in most_similar([same] * 5, 2)[3]] == [1.0, 1.0]
    assert most_similar([same], 6) == [()]
    assert most_similar([], 6) == []
    assert cluster_centres(np.ones((2, 4)), np.array([-1, -1])).shape == (0, 4)


def test_clusters_come_by_weight_each_with_its_medoid_first():
    row = make_row(n=40, k=4, activation=np.arange(40, dtype=np.float32)[::-1])
    detail = neuron_detail(row, THUMB, PART)
    order = np.argsort(-row.cluster_weight)
    assert [cluster.number for cluster in detail.clusters] == [1, 2, 3, 4, 0]
    unit = normalised(row.embedding.astype(np.float64))
    for cluster, label in zip(detail.clusters[:4], order, strict=False):
        members = np.flatnonzero(row.label == label)
        centre = normalised(unit[members].mean(0))
        medoid = members[np.argmax(unit[members] @ centre)]
        assert cluster.weight == row.cluster_weight[label]
        assert cluster.pictures[0].image == medoid
        assert [picture.is_medoid for picture in cluster.pictures] == [True] + [False] * (
            len(members) - 1
        )
        # Here the activation falls with the index.
        rest = [picture.image for picture in cluster.pictures[1:]]
        assert rest == sorted(set(members.tolist()) - {medoid})
    invalid = detail.clusters[-1]
    assert invalid.weight is None
    assert [p.image for p in invalid.pictures] == np.flatnonzero(row.label < 0).tolist()
    assert not any(picture.is_medoid for picture in invalid.pictures)
    assert [picture.tile for picture in detail.pictures] == list(range(40))
    images = [picture.image for picture in detail.pictures]
    np.testing.assert_allclose(
        detail.similarity, (unit @ unit.T)[np.ix_(images, images)], atol=1e-12
    )
    assert detail.thumbs == 4
    assert [p.activation for p in detail.pictures] == [39.0 - i for i in images]
    assert list(detail.bic) == row.bic.tolist()


def test_of_a_pair_the_stronger_image_is_the_medoid():
    for seed in range(20):
        embedding = np.random.default_rng(seed).normal(size=(2, 64)).astype(np.float32)
        row = make_row(
            n=2,
            k=1,
            label=np.zeros(2, np.int32),
            embedding=embedding,
            activation=np.array([1, 2], np.float32),
        )
        assert [p.image for p in neuron_detail(row, THUMB, PART).pictures] == [1, 0]


def test_neurons_without_valid_images_or_images():
    row = make_row(
        n=3,
        label=np.full(3, -1, np.int32),
        activation=np.array([1, np.nan, 3], np.float32),
        embedding=np.full((3, 4), np.nan, np.float32),
        bic=np.full(3, np.nan),
    )
    detail = neuron_detail(row, THUMB, PART)
    # A chart of nothing is none.
    assert detail.bic == []
    assert [(cluster.number, len(cluster.pictures)) for cluster in detail.clusters] == [(0, 3)]
    assert [picture.image for picture in detail.pictures] == [2, 0, 1]
    assert {(picture.x, picture.y) for picture in detail.pictures} == {(0.5, 0.5)}
    assert detail.thumbs == 1
    assert np.isnan(detail.similarity).all()
    dead = neuron_detail(make_dead(), THUMB, PART)
    assert (dead.clusters, dead.sheet, dead.thumb, dead.thumbs) == ([], b"", b"", 0)
    assert dead.similarity.shape == (0, 0)


def test_the_map_shows_the_principal_axes():
    embedding = np.random.default_rng(0).normal(size=(20, 30)) + 2
    place = image_map(embedding)
    expected = PCA(2, svd_solver="full").fit_transform(normalised(embedding))
    # Up to reflection, and one scale for both.
    for axis in range(2):
        if abs(expected[:, axis].min()) > expected[:, axis].max():
            expected[:, axis] *= -1
    low, high = expected.min(0), expected.max(0)
    expected = 0.5 + (expected - (low + high) / 2) / (high - low).max()
    np.testing.assert_allclose(place, expected, atol=1e-9)
    np.testing.assert_allclose([place.min(), place.max()], [0, 1], atol=1e-12)
    # Rows in another order, and another rounding, do not turn it.
    order = np.random.default_rng(1).permutation(20)
    np.testing.assert_allclose(image_map(embedding[order]), place[order], atol=1e-9)
    np.testing.assert_allclose(image_map(embedding * 3), place, atol=1e-9)


def test_the_map_of_few_or_equal_images():
    assert image_map(np.ones((1, 3))).tolist() == [[0.5, 0.5]]
    assert image_map(np.ones((4, 3))).tolist() == [[0.5, 0.5]] * 4
    assert image_map(np.zeros((0, 0))).shape == (0, 2)
    pair = image_map(np.array([[1.0, 0.0, 0.3], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(pair, [[1, 0.5], [0, 0.5]], atol=1e-12)
    partly = image_map(np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(partly, [[1, 0.5], [0.5, 0.5], [0, 0.5]], atol=1e-12)


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (32, 6), (64, 8), (100, 8)]
)
def test_a_sheet_holds_every_picture_in_its_place(count, columns):
    colours = [tuple(c) for c in np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()]
    sheet = draw_sheet(read_pictures([png(colour) for colour in colours]))
    assert (sheet.columns, sheet.tile) == (columns, 8)
    drawn = Image.open(io.BytesIO(sheet.jpeg))
    assert drawn.format == "JPEG"
    assert drawn.size == (8 * columns, 8 * -(-count // columns))
    pixels = np.asarray(drawn.convert("RGB")).astype(int)
    for place, colour in enumerate(colours):
        middle = pixels[8 * (place // columns) + 4, 8 * (place % columns) + 4]
        assert np.abs(middle - colour).max() <= 6


def test_pictures_of_any_size_and_kind_fit_their_tiles():
    files = [
        png(200, (300, 100), "L"),
        png((255, 0, 0), (10, 10)),
        png((0, 0, 255, 9), mode="RGBA"),
    ]
    sheet = draw_sheet(read_pictures(files))
    assert (sheet.columns, sheet.tile) == (2, 224)
    pixels = np.asarray(Image.open(io.BytesIO(sheet.jpeg))).astype(int)
    # The wide one has a margin above and below; the small ones are enlarged.
    for (row, column), colour in {
        (10, 112): (128, 128, 128),
        (112, 112): (200, 200, 200),
        (10, 234): (255, 0, 0),
        (400, 112): (0, 0, 255),
    }.items():
        assert np.abs(pixels[row, column] - colour).max() <= 6
    strip = Image.open(io.BytesIO(draw_strip(read_pictures(files), THUMB)))
    assert strip.size == (3 * THUMB, THUMB)


@pytest.mark.parametrize("is_lenient", [False, True])
@pytest.mark.parametrize(
    "damage",
    [b"", b"no picture", GRAINY[:60], GRAINY[:-20], flipped(GRAINY, 20), flipped(GRAINY, 900)],
    ids=["empty", "text", "cut", "without its end", "other size", "other pixels"],
)
def test_a_crossed_tile_stands_for_a_damaged_picture(tmp_path, monkeypatch, damage, is_lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lenient)
    store = RunStore(tmp_path)
    store.append([make_row("a:0", n=1)])
    whole = png((10, 200, 30), (32, 32))
    label = np.zeros(4, np.int32)
    images = [whole, damage, whole, damage]
    part = store.append([make_row("a:1", n=4, k=1, label=label, image=images)])
    store.close()
    (_, sound), (_, detail) = read_details(gather_run(tmp_path))
    assert list(sound.unreadable) == []
    assert [(lost.path, lost.reason) for lost in detail.unreadable] == [
        (
            part,
            "images 1, 3 of neuron a:1 are no readable PNG files of at most "
            f"{MOST_PIXELS:,} pixels",
        )
    ]
    assert (detail.columns, detail.tile) == (2, 32)
    pixels = np.asarray(Image.open(io.BytesIO(detail.sheet))).astype(int)
    for picture in detail.pictures:
        row, column = divmod(picture.tile, 2)
        tile = pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        if picture.image in (0, 2):
            assert np.abs(tile - (10, 200, 30)).max() <= 30
        else:
            # Grey, and lighter on both diagonals than between them.
            assert np.ptp(tile, axis=-1).max() <= 30
            assert tile[(8, 8, 16, 24, 24), (8, 23, 16, 7, 24)].min() > 170
            assert np.abs(tile[(4, 16, 16, 28), (16, 4, 28, 16)] - 128).max() <= 12


def claiming(width, height):
    """A PNG file of a few bytes whose head promises many pixels; its checksums are right."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(b"\0" * 10))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + content + chunk(b"IEND", b"")


def test_pictures_are_bounded_before_they_are_decoded(tmp_path, monkeypatch):
    for bomb in (claiming(50_000, 50_000), claiming(1, 2**31 - 1), claiming(MOST_PIXELS + 1, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", None)
            assert read_pictures([bomb]) == [None]
    write(
        tmp_path, make_row("a:0", n=2, image=[png((1, 2, 3), (32, 32)), claiming(50_000, 50_000)])
    )
    ((_, detail),) = read_details(gather_run(tmp_path))
    assert [picture.is_damaged for picture in detail.pictures if picture.image == 1] == [True]
    assert detail.unreadable[0].reason.startswith("image 1 of neuron a:0 is no readable PNG file")
    (large,) = read_pictures([png((1, 2, 3), (1000, 500))])
    assert large.size == (224, 112)


def test_a_neuron_of_which_every_picture_is_damaged_keeps_its_page(tmp_path):
    write(tmp_path, make_row("a:0", n=3, image=[b"", b"text", b""]))
    run = gather_run(tmp_path)
    [(_, detail)] = read_details(run)
    assert len(detail.pictures) == 3
    assert Image.open(io.BytesIO(detail.sheet)).size == (2 * detail.tile, 2 * detail.tile)
    assert Image.open(io.BytesIO(detail.thumb)).size == (detail.thumbs * THUMB, THUMB)
    assert detail.unreadable[0].reason.startswith("images 0, 1, 2 of neuron a:0 are no readable")


def test_details_are_worked_out_with_one_thread_of_blas_and_then_with_all(tmp_path):
    write(tmp_path, *(make_row(f"a:{i}", n=2) for i in range(6)))

    def blas():
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        before = blas()
        details = read_details(gather_run(tmp_path))
        next(details)
        assert set(blas()) == {1}
        assert len(list(details)) == 5
        assert blas() == before


def test_details_come_as_written_only_those_wanted_and_each_once(tmp_path):
    store = RunStore(tmp_path)
    store.append([make_row(f"a:{i}", channel=i, n=2) for i in (7, 3, 9, 1, 5, 8)])
    store.append([make_row(f"a:{i}", channel=i, n=1) for i in (3, 0)])
    run = gather_run(tmp_path)
    names = [summary.name for summary, _ in read_details(run)]
    assert names == ["a:7", "a:3", "a:9", "a:1", "a:5", "a:8", "a:0"]
    wanted = [neuron.position for neuron in run.neurons if neuron.name in ("a:0", "a:9", "a:3")]
    found = list(read_details(run, wanted))
    assert [(summary.name, len(detail.pictures)) for summary, detail in found] == [
        ("a:3", 2),
        ("a:9", 2),
        ("a:0", 1),
    ]
    assert list(read_details(run, [])) == []
    # One that is finished since is left for the next report.
    store.append([make_row("a:99", channel=99)])
    assert len(list(read_details(run))) == 7
    (tmp_path / "neurons" / "part-00000-000001.parquet").unlink()
    with pytest.raises(InputError, match="no longer holds a:0; were its parts moved"):
        list(read_details(run))


def test_slugs_are_readable_safe_unique_and_the_same_in_every_run():
    assert slug("blocks.4:17") == "blocks.4-17"
    assert slug("blocks.4") == "blocks.4"
    assert slug("max(blocks.4:3,blocks.4:9)").startswith("max-blocks.4-3-blocks.4-9-x")
    assert slug("-blocks.4:17@3x5").startswith("blocks.4-17-3x5-x")
    names = [
        "blocks.4:17",
        "-blocks.4:17",
        "blocks.4-17",
        "Blocks.4:17",
        "blocks.4:17@center",
        "blocks.4:1-7",
        "blocks.4-1:7",
        "../../etc/passwd:1",
        "..",
        ".",
        "",
        "/",
        "\\",
        "a..b:1",
        ".hidden:1",
        '<script>alert("x")</script>:3',
        "\ud800",
        "層:1",
        "层:1",
        "a\n:1",
        "x" * 99 + ":1",
        "x" * 99 + ":12",
        "x" * 98 + ":1",
        *(slug(name) for name in ("-blocks.4:17", "Blocks.4:17")),
    ]
    slugs = [slug(name) for name in names]
    assert len({s.lower() for s in slugs}) == len(names)
    for text in slugs:
        assert 0 < len(text) <= 100
        assert text.isascii()
        assert text.replace("-", "").replace("_", "").replace(".", "").isalnum()
        assert ".." not in text
        assert text[0] not in ".-"


def test_a_report_can_be_made_of_values_as_json(tmp_path):
    write(tmp_path, make_row(), make_dead())
    for neuron in gather_run(tmp_path).neurons:
        json.dumps(dict(neuron.values), allow_nan=False)


def test_shards_that_are_not_here_are_counted(tmp_path):
    write(tmp_path, make_row("a:0"))
    made = Manifest(settings={}, seed=0, device={}, status="finished")
    write_manifest(tmp_path, made, 1)
    for shard, missing in (("1/5", 4), ("0/1", 0), ("'4/2'", 1)):
        (tmp_path / "config.yaml").write_text(f"data:\n  neurons:\n  - a:0\n  shard: {shard}\n")
        run = gather_run(tmp_path)
        assert run.state == "finished"
        assert run.missing_shards == missing
    write_manifest(tmp_path, made)
    assert gather_run(tmp_path).missing_shards == 0


def test_a_heat_map_shows_every_cosine_with_gaps_between_clusters():
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.2, 1, (6, 6))
    similarity[2, 3] = np.nan
    pixels = np.asarray(Image.open(io.BytesIO(heat_map(similarity, [3, 2, 1]))))
    bands = heat_map_bands([3, 2, 1])
    side = len(pixels)
    starts = [round(side * start) for start, _ in bands]
    lengths = [round(side * length) for _, length in bands]
    cell = lengths[2]
    assert lengths == [3 * cell, 2 * cell, cell]
    gap = starts[1] - lengths[0]
    assert gap > 0
    assert starts == [0, 3 * cell + gap, 5 * cell + 2 * gap]
    middle = [
        start + cell * i + cell // 2
        for start, size in zip(starts, (3, 2, 1), strict=True)
        for i in range(size)
    ]
    found = pixels[middle][:, middle]
    viridis = colormaps["viridis"](np.clip(np.nan_to_num(similarity), 0, 1))[..., :3] * 255
    known = np.isfinite(similarity)
    assert (found[..., 3] == np.where(known, 255, 0)).all()
    # Five colours with straight lines between them stand for the 256.
    assert np.abs(found[known][:, :3] - viridis[known]).max() <= 30
    # Gaps are transparent.
    assert (pixels[starts[1] - 1, :, 3] == 0).all()
