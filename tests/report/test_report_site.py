import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fakes import ODD, Page, check_addresses, every_page, make_run, manifest, write

from polylight.report import charts
from polylight.report.content import Unreadable
from polylight.report.rasters import heat_map


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return write(make_run(folder / "run"), folder / "report")


def page_of(site, name):
    return next(Page(p) for p in sorted((site / "neurons").iterdir()) if p.name.startswith(name))


def test_every_address_leads_to_a_file_of_the_site(site):
    assert len(every_page(site)) == 1 + 2 + 4
    check_addresses(site)


def test_names_are_shown_and_not_run(site):
    for page in every_page(site):
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        ours = {"theme.js", "page.js", "rows.js", "table.js", "neurons.js"}
        for attributes in scripts:
            assert Path(attributes["src"]).name in ours
        assert not [name for name in page.attributes if name.startswith("on")]
        policy = [a["content"] for _, a in page.tags if a.get("http-equiv")]
        assert "unsafe-eval" not in policy[0]
        assert "default-src 'none'; script-src 'self' file:;" in policy[0]
    assert ODD in page_of(site, "n3").text
    assert ODD in Page(site / "index.html").text
    assert ODD in Page(site / "layers" / "layer-1.html").text
    text = (site / "assets" / "neurons.js").read_text()
    assert "<" not in text
    assert all(path.resolve().is_relative_to(site) for path in site.rglob("*"))


def test_pages_have_one_title_and_headings_in_order(site):
    for page in every_page(site):
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
        assert len(page.ids) == len(set(page.ids))


def test_the_table_has_the_numbers_of_the_run(site):
    text = (site / "assets" / "neurons.js").read_text()
    data = json.loads(text.removeprefix("window.POLYLIGHT = ").removesuffix(";\n"))
    columns = data["columns"]
    assert columns["neuron"] == ["a:0", "a:1", "a:2", ODD]
    assert columns["layer"] == [0, 0, 0, 1]
    assert [layer["count"] for layer in data["layers"]] == [3, 1]
    assert columns["score"] == [0.1, 0.7, None, 0.4]
    assert columns["k"] == [1, 2, None, 2]
    assert columns["status"] == ["ok", "ok", "dead", "ok"]
    assert columns["thumbs"] == [2, 2, 0, 2]
    assert columns["across"] == [3, 3, 0, 3]
    assert columns["sizes"] == [[2, 2, 1], [2, 2, 1], [], [2, 2, 1]]
    assert columns["shares"] == [["100 %"], ["75 %", "25 %"], [], ["75 %", "25 %"]]
    assert columns["activation"] == [1.5] * 4
    # 1 / (1 - score) of the row, to six digits.
    assert columns["k_eff"][0] == 2.0
    assert {len(column) for column in columns.values()} == {4}


def test_a_neuron_reads_without_scripts(site):
    page = page_of(site, "n1")
    text = " ".join(page.text.split())
    assert "Score 0.700 95 %: 0.40 to 0.60" in text
    assert "Its 5 images fall into 2 clusters." in text
    assert "Feature 1 75 % of its strength, 2 images" in text
    assert "Not valid 1 image too weak to count" in text
    assert "Of these, K = 2 has no other K within reach." in text
    tiles = [a for _, a in page.tags if a.get("class") == "tile" and "href" in a]
    assert {a["href"] for a in tiles} == {"../images/n1-a-1.jpg"}
    # Three columns and two rows.
    assert [a["style"] for a in tiles] == [
        f"--column:{column};--row:{row}" for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    # The images that are not valid are no third cluster.
    assert [a["alt"] for t, a in page.tags if t == "img" and a["src"] in tiles[0]["href"]][:5] == [
        "a:1, feature 1 (75 %): typical image 0, activation 5.00",
        "a:1, feature 1 (75 %): image 1, activation 4.00",
        "a:1, feature 2 (25 %): typical image 2, activation 3.00",
        "a:1, feature 2 (25 %): image 3, activation 2.00",
        "a:1, not valid: image 4, activation 1.00",
    ]
    matrix = next(a for t, a in page.tags if t == "img" and a["src"].startswith("data:"))
    assert matrix["alt"].endswith("mean cosine 0.00 in one cluster and 0.00 of two clusters")
    picture = Image.open(io.BytesIO(base64.b64decode(matrix["src"].split(",")[1])))
    expected = Image.open(io.BytesIO(heat_map(np.eye(5), [2, 2, 1], 3)))
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert "Bayesian information criterion by number of clusters; K = 2 was chosen." in [
        a.get("aria-label") for _, a in page.tags
    ]


def test_every_image_says_what_it_shows(site):
    for page in every_page(site):
        for tag, attributes in page.tags:
            if tag == "img":
                assert attributes["alt"].strip(), (page.path, attributes["src"])


def test_the_first_screen_has_one_image_a_feature_of_the_most_polysemantic(site):
    page = Page(site / "index.html")
    alts = [a["alt"] for tag, a in page.tags if tag == "img"]
    # The neuron of K = 1 has two clusters here, which no run has.
    features = ["feature 1 (75 %)", "feature 2 (25 %)"]
    shown = {"a:1": features, ODD: features, "a:0": ["feature 1 (100 %)", "feature 2"]}
    assert alts == [f"{name}, {of}: typical image" for name in shown for of in shown[name]]
    text = " ".join(page.text.split())
    assert text.index("Most polysemantic") < text.index("Clear") < text.index("Scores by layer")


def test_no_page_ships_a_library_or_a_colour_for_several_neurons(site):
    assert sorted(path.name for path in (site / "assets").iterdir()) == [
        "neurons.js", "page.js", "rows.js", "style.css", "table.js", "theme.js",
    ]  # fmt: skip
    for name in ("index.html", "layers/layer-0.html", "assets/table.js"):
        assert "--cluster-" not in (site / name).read_text()


def test_settings_are_folded(site):
    page = Page(site / "index.html")
    folded = [a for tag, a in page.tags if tag == "details" and "class" not in a]
    assert len(folded) == 2
    assert all("open" not in attributes for attributes in folded)


def test_pages_turn_in_the_order_of_the_table(site):
    turns = {}
    for page in every_page(site / "neurons"):
        links = {a["rel"]: a["href"][:2] for t, a in page.tags if t == "a" and "rel" in a}
        turns[page.path.name[:2]] = links.get("prev"), links.get("next")
    # By falling score, and those without one last.
    assert turns == {
        "n1": (None, "n3"), "n3": ("n1", "n0"), "n0": ("n3", "n2"), "n2": ("n0", None),
    }  # fmt: skip


def test_a_neuron_without_images_says_why(site):
    text = page_of(site, "n2").text
    assert "No image drives this neuron beyond what random images do" in text
    assert "Feature" not in text
    assert not (site / "images" / "n2-a-2.jpg").exists()


def test_colours_of_clusters_are_those_of_the_charts(site):
    style = (site / "assets" / "style.css").read_text()
    assert dict(re.findall(r"--cluster-([1-9]\d*):(#\w{6})", style)) == {
        str(i): colour for i, colour in enumerate(charts.PALETTE, start=1)
    }


def test_an_incomplete_run_says_so(tmp_path):
    broken = [Unreadable(path=Path("neurons/part-1"), reason="magic <b>bytes</b>")]
    counts = {"total": 9, "finished": 4, "failed": 0, "dead": 1}
    run = make_run(
        tmp_path, state="interrupted", unreadable=broken, manifest=manifest(neurons=counts)
    )
    text = " ".join(Page(write(run, tmp_path / "report") / "index.html").text.split())
    assert "The run was interrupted: 4 of 9 neurons are here." in text
    assert "neurons/part-1: magic <b>bytes</b>" in text
    shard = make_run(tmp_path, num_shards=5, missing_shards=4)
    text = Page(write(shard, tmp_path / "shard") / "index.html").text
    assert "1 of 5 shards is here" in text
    assert "The run is finished." not in text
    assert "This report is not complete" in text
    bare = make_run(tmp_path, state="unknown", manifest=None)
    text = Page(write(bare, tmp_path / "bare") / "index.html").text
    assert "has no manifest" in text
