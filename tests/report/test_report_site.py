import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_fakes import ODD, Page, check_addresses, every_page, make_run, manifest, write

from polylight.report import charts
from polylight.report.content import Unreadable


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
        ours = {"theme.js", "page.js", "vega.js", "rows.js", "table.js", "neurons.js"}
        for attributes in scripts:
            is_data = attributes.get("type") == "application/json"
            assert is_data or Path(attributes["src"]).name in ours
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
    assert "No vote 1 image too weak to count" in text
    assert "Of these, K = 2 has no rival within reach." in text
    images = [a for _, a in page.tags if a.get("role") == "img" and "style" in a]
    assert [a["aria-label"].split(" of ")[0] for a in images] == [
        "Typical image 0", "Image 1", "Typical image 2", "Image 3", "Image 4",
    ]  # fmt: skip
    # Three columns and two rows: a tile is at 0, a half or the whole of what is left.
    assert [a["style"] for a in images] == [
        f"background-position:{place}"
        for place in ("0% 0%", "50% 0%", "100% 0%", "0% 100%", "50% 100%")
    ]  # fmt: skip
    specs = re.findall(
        r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page.path.read_text()
    )
    assert [name for name, _ in specs] == ["similarity", "bic"]
    assert all("vega-lite" in json.loads(spec)["$schema"] for _, spec in specs)
    # The images where invalid are no third cluster.
    expected = charts.similarity_matrix(np.eye(5), [2, 2, 1], [1, 2, 0])
    assert json.loads(specs[0][1]) == json.loads(json.dumps(expected))


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
    bare = make_run(tmp_path, state="unknown", manifest=None)
    text = Page(write(bare, tmp_path / "bare") / "index.html").text
    assert "has no manifest" in text
