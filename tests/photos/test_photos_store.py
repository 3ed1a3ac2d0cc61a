import dataclasses

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polylight.errors import InputError
from polylight.photos.store import (
    Photo,
    PhotoRanking,
    list_pairs,
    measured,
    read_pair,
    remove_others,
    write_pair,
)

JPEG = b"\xff\xd8 not decoded here"


def photo(number, name=None):
    rng = np.random.default_rng(number)
    return Photo(
        photo=number,
        name=name or f"{number}.jpg",
        jpeg=JPEG,
        embedding=rng.normal(size=5).astype(np.float32),
    )


def ranking(neuron, photos=(3, 1), **changes):
    made = PhotoRanking(
        neuron=neuron,
        num_photos=9,
        share_below=0.75,
        photo=list(photos),
        activation=[2.5 - i for i in range(len(photos))],
    )
    return dataclasses.replace(made, **changes)


def write(run, *neurons, rank=0, key="k"):
    write_pair(run, rank, key, [[photo(1)], [photo(3)]], [ranking(n) for n in neurons])


def files(run):
    return sorted(path.name for path in (run / "photos").iterdir())


def test_what_is_written_is_read(tmp_path):
    photos = [photo(1, '<script>"&é'), photo(3), photo(7)]
    rankings = [
        ranking("a:0"),
        ranking("max(a:0,b:1)", [7], share_below=1.0),
        ranking("-a:2", [], share_below=None, num_photos=0),
    ]
    write_pair(tmp_path, 2, "key", [photos[:2], photos[2:]], rankings)
    assert files(tmp_path) == ["neurons-00002-000000.parquet", "photos-00002-000000.parquet"]
    (pair,) = list_pairs(tmp_path)
    assert (pair.key, pair.rank, pair.number) == ("key", 2, 0)
    assert pair.rankings() == rankings
    columns = ["photo", "name", "image", "embedding"]
    for at_once, sizes in ((1, [1, 1, 1]), (64, [3])):
        tables = list(pair.stream(columns, at_once))
        assert [table.num_rows for table in tables] == sizes
        rows = pa.concat_tables(tables).to_pylist()
        assert [row["photo"] for row in rows] == [1, 3, 7]
        assert [row["name"] for row in rows] == [p.name for p in photos]
        assert all(row["image"]["bytes"] == JPEG for row in rows)
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        np.testing.assert_array_equal(vectors, [p.embedding for p in photos])
    assert list_pairs(tmp_path / "nowhere") == []


def test_other_tools_read_it(tmp_path):
    write(tmp_path, "a:0", "a:1")
    neurons, photos = (str(tmp_path / "photos" / f"{n}-*.parquet") for n in ("neurons", "photos"))
    found = duckdb.sql(
        f"SELECT neuron, p.name FROM (SELECT neuron, unnest(photo) AS photo FROM '{neurons}') "
        f"JOIN '{photos}' p USING (photo) ORDER BY neuron, p.name"
    ).fetchall()
    assert found == [("a:0", "1.jpg"), ("a:0", "3.jpg"), ("a:1", "1.jpg"), ("a:1", "3.jpg")]
    schema = pq.read_schema(tmp_path / "photos" / "photos-00000-000000.parquet")
    features = datasets.Features.from_arrow_schema(schema)
    assert isinstance(features["image"], datasets.Image)


def test_neurons_count_by_the_photos_that_they_were_shown(tmp_path):
    assert measured(tmp_path, "k") == set()
    write(tmp_path, "a:0", "a:1")
    write(tmp_path, "a:2", rank=1)
    write(tmp_path, "a:3", key="other")
    assert measured(tmp_path, "k") == {"a:0", "a:1", "a:2"}
    assert measured(tmp_path, "other") == {"a:3"}
    numbers = [(pair.rank, pair.number, pair.key) for pair in list_pairs(tmp_path)]
    # By age.
    assert numbers == [(0, 0, "k"), (1, 0, "k"), (0, 1, "other")]


def test_what_was_measured_with_other_photos_goes(tmp_path):
    write(tmp_path, "a:0")
    write(tmp_path, "a:1", rank=1)
    write(tmp_path, "a:0", key="new")
    (tmp_path / "photos" / ".photos-00000-000002.parquet.tmp").touch()
    (tmp_path / "photos" / ".photos-00001-000002.parquet.tmp").touch()
    remove_others(tmp_path, 0, "new")
    assert files(tmp_path) == [
        ".photos-00001-000002.parquet.tmp",
        "neurons-00000-000001.parquet",
        "neurons-00001-000000.parquet",
        "photos-00000-000001.parquet",
        "photos-00001-000000.parquet",
    ]


def test_a_pair_counts_only_when_it_is_whole(tmp_path):
    write(tmp_path, "a:0")

    def broken():
        yield [photo(1)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pair(tmp_path, 0, "k", broken(), [ranking("a:1")])
    assert files(tmp_path) == ["neurons-00000-000000.parquet", "photos-00000-000000.parquet"]
    # Killed between the two files: the photos alone are written anew.
    (tmp_path / "photos" / "photos-00000-000001.parquet").write_bytes(b"of a killed process")
    assert measured(tmp_path, "k") == {"a:0"}
    write(tmp_path, "a:1")
    assert measured(tmp_path, "k") == {"a:0", "a:1"}
    tables = list_pairs(tmp_path)[1].stream(["photo"], 9)
    assert next(tables)["photo"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "was not written by polylight"),
        (b'{"schema_version": 99}', "has version 99"),
    ],
)
def test_files_of_others_are_refused(tmp_path, meta, message):
    write(tmp_path, "a:0")
    path = tmp_path / "photos" / "neurons-00000-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(meta and {b"polylight_photos": meta}), path)
    with pytest.raises(InputError, match=message):
        read_pair(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path, "a:0")
    (pair,) = list_pairs(tmp_path)
    pair.photos.unlink()
    with pytest.raises(InputError, match=r"photos-00000-000000\.parquet.*--data\.photos"):
        list(pair.stream(["photo"], 1))
    # They are measured again.
    assert measured(tmp_path, "k") == set()
    write(tmp_path, "a:0")
    remove_others(tmp_path, 0, "k")
    (pair,) = list_pairs(tmp_path)
    assert pair.number == 1
    pair.neurons.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot read .*neurons-00000-000001\.parquet"):
        list_pairs(tmp_path)
    with pytest.raises(InputError, match="delete it and run the same fit again"):
        measured(tmp_path, "k")
