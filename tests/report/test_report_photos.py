import dataclasses

import numpy as np
import pytest
from example_rows import make_dead, make_row
from report_fakes import ODD, check_addresses, every_page

from polylight.embedding.reference import Reference
from polylight.photos.store import Photo, PhotoRanking, list_pairs, write_pair
from polylight.report.content import NearPhoto, PhotoFacts
from polylight.report.gather import gather_run, read_details
from polylight.report.photos import SHOWN, sentence
from polylight.report.site import write_site
from polylight.run.store import REFERENCE, RunStore

DIM = 16
# What all embeddings have in common: without the centring every photo would be of one cluster.
MEAN = np.full(DIM, 3.0, dtype=np.float32)


def direction(i):
    return np.eye(DIM, dtype=np.float32)[i]


def photo(number, embedding, name=None):
    name = name or f"folder/{number}.jpg"
    return Photo(photo=number, name=name, jpeg=b"jpeg %d" % number, embedding=embedding)


def ranking(neuron, photos, **changes):
    activation = [10.0 - i for i in range(len(photos))]
    made = PhotoRanking(
        neuron=neuron, num_photos=200, share_below=0.9, photo=photos, activation=activation
    )
    return dataclasses.replace(made, **changes)


def row(name, **changes):
    """Two clusters, along the first and the second axis; the stronger one is that of label 1."""
    labels = np.int32([0, 0, 1, 1, 1, -1])
    axes = np.stack([MEAN + direction(label) for label in labels])
    embedding = axes + 0.01 * np.random.default_rng(0).normal(size=axes.shape)
    made = {"label": labels, "embedding": embedding.astype(np.float32), "layer": "a"}
    return make_row(name, **{**made, "cluster_weight": np.array([0.4, 0.6]), **changes})


@pytest.fixture
def run(tmp_path):
    store = RunStore(tmp_path / "run")
    store.append([row("a:0"), row("a:1"), make_dead("a:2"), row("a:3"), make_dead("a:4")])
    store.close()
    Reference("key", _torch(MEAN), {}, {}).save(tmp_path / "run" / REFERENCE)
    return tmp_path / "run"


def _torch(array):
    import torch

    return torch.from_numpy(array)


def shown(run_dir):
    """By neuron, what its page shows."""
    return {n.name: detail for n, detail in read_details(gather_run(run_dir))}


def test_photos_are_of_the_cluster_that_they_look_most_like(run):
    near = [0.2, 0.9, 0.5, 0.7]
    photos = [
        photo(10 + i, MEAN + 5 * (c * direction(i % 2) + np.sqrt(1 - c * c) * direction(2 + i)))
        for i, c in enumerate(near)
    ]
    write_pair(run, 0, "k", [photos], [ranking("a:0", [12, 10, 13, 11]), ranking("a:1", [11])])
    details = shown(run)
    strong, weak, rest = details["a:0"].clusters
    # The stronger cluster, along the second axis, comes first; in it the nearest photo.
    assert [p.name for p in strong.photos] == ["folder/11.jpg", "folder/13.jpg"]
    assert [p.name for p in weak.photos] == ["folder/12.jpg", "folder/10.jpg"]
    assert [p.activation for p in strong.photos] == [7.0, 8.0]
    assert not rest.photos
    for cluster, cosines in ((strong, [0.9, 0.7]), (weak, [0.5, 0.2])):
        found = [p.cosine for p in cluster.photos]
        np.testing.assert_allclose(found, cosines, atol=0.02)
    facts = details["a:0"].photos
    assert [p.activation for p in facts.strongest] == [10.0, 9.0, 8.0, 7.0]
    assert [len(c.photos) for c in details["a:1"].clusters] == [1, 0, 0]
    assert details["a:3"].photos is None


def test_only_the_nearest_photos_of_a_cluster_are_shown(run):
    photos = [photo(i, MEAN + direction(0) + 0.1 * i * direction(3)) for i in range(9)]
    write_pair(run, 0, "k", [photos], [ranking("a:0", [8, 3, 1, 0, 2, 7, 6, 5, 4])])
    photos = shown(run)["a:0"].clusters[1].photos
    assert [p.name for p in photos] == [f"folder/{i}.jpg" for i in range(SHOWN)]


def test_of_photos_shown_twice_the_last_count_and_equal_ones_are_one(run):
    write_pair(run, 1, "old", [[photo(5, MEAN + direction(0))]], [ranking("a:0", [5])])
    write_pair(run, 0, "new", [[photo(5, MEAN + direction(1), "new")]], [ranking("a:0", [5])])
    write_pair(run, 2, "new", [[photo(5, MEAN + direction(1), "new")]], [ranking("a:1", [5])])
    details = shown(run)
    (one,), (other,) = details["a:0"].clusters[0].photos, details["a:1"].clusters[0].photos
    assert one.name == other.name == "new"
    assert one.number == other.number
    assert gather_run(run).photos.names.count("new") == 1


def test_pages_show_photos_once_and_run_no_name(run, tmp_path):
    photos = [photo(i, MEAN + direction(i % 2), ODD if i == 1 else None) for i in range(6)]
    rankings = [
        ranking("a:0", [1, 0]),
        ranking("a:1", [1], share_below=1.0),
        ranking("a:2", [4, 1], share_below=None),
        ranking("a:4", [], share_below=None),
    ]
    write_pair(run, 0, "k", [photos[:3], photos[3:]], rankings)
    out = tmp_path / "site"
    out.mkdir()
    write_site(gather_run(run), out)
    check_addresses(out)
    pages = {page.path.stem: page for page in every_page(out / "neurons")}
    used = {path.read_bytes() for path in (out / "photos").iterdir()}
    assert used == {b"jpeg 0", b"jpeg 1", b"jpeg 4"}
    for page in pages.values():
        assert not [n for n in page.attributes if n.startswith("on")]
        sources = [a.get("src") for tag, a in page.tags if tag == "script"]
        assert all(s is None or s.startswith("../assets/") for s in sources)
        for tag, attributes in page.tags:
            if tag == "img" and "photos/" in attributes["src"]:
                assert attributes["loading"] == "lazy"
                assert attributes["alt"].startswith("Photo ")
    images = [a for tag, a in pages["a-0"].tags if tag == "img" and "photos/" in a["src"]]
    assert [a["alt"].split(", like")[0] for a in images] == [f"Photo {ODD}", "Photo folder/0.jpg"]
    text = {name: " ".join(page.text.split()) for name, page in pages.items()}
    assert "The strongest of 200 photos drives it to 10.0" in text["a-0"]
    assert "above all of them" in text["a-1"]
    assert "None of the neuron's strongest photos is nearest to it." in text["a-1"]
    assert "Photos that drive it most The strongest of 200 photos" in text["a-2"]
    assert "None of 200 photos drives this neuron." in text["a-4"]
    assert "photo" not in text["a-3"]


def test_a_run_without_photos_has_none(run, tmp_path):
    (tmp_path / "site").mkdir()
    write_site(gather_run(run), tmp_path / "site")
    assert gather_run(run).photos is None
    assert not (tmp_path / "site" / "photos").exists()
    # The name of the folder is on the page of the run.
    assert not any("photo" in page.text for page in every_page(tmp_path / "site" / "neurons"))


def test_photos_that_cannot_be_read_are_listed_and_the_rest_is_shown(run, tmp_path):
    write_pair(run, 0, "k", [[photo(1, MEAN + direction(1))]], [ranking("a:0", [1])])
    write_pair(run, 1, "k", [[photo(2, MEAN + direction(1))]], [ranking("a:1", [2])])
    (run / "photos" / "photos-00000-000000.parquet").write_bytes(b"damaged")
    gathered = gather_run(run)
    (lost,) = gathered.unreadable
    assert lost.path.name == "neurons-00000-000000.parquet"
    assert "photos-00000-000000.parquet" in lost.reason
    details = shown(run)
    assert details["a:0"].photos is None
    assert [p.name for p in details["a:1"].clusters[0].photos] == ["folder/2.jpg"]
    # Gone while the report is written.
    list_pairs(run)[1].photos.unlink()
    (tmp_path / "site").mkdir()
    written = write_site(gathered, tmp_path / "site")
    assert [part.path.name for part in written.unreadable][1:] == ["photos-00001-000000.parquet"]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "The strongest of 1,000 photos drives it to 2.50."),
        (1.0, "above all of them"),
        (0.9999, "above 99.9\u00a0% of them"),
        (0.5, "above 50\u00a0% of them"),
        (0.0004, "above under 0.1\u00a0% of them"),
        (0.0, "above none of them"),
    ],
)
def test_the_sentence_rounds_nothing_up_to_all(share, said):
    strongest = [NearPhoto(number=0, name="a", activation=2.5)]
    facts = PhotoFacts(num_photos=1000, share_below=share, strongest=strongest)
    assert said in sentence(facts)


def test_the_sentence_says_when_no_photo_drives_a_neuron():
    assert sentence(PhotoFacts(num_photos=7, share_below=1.0, strongest=[])) == (
        "None of 7 photos drives this neuron."
    )
    assert "a number" in sentence(PhotoFacts(num_photos=0, share_below=None, strongest=[]))
