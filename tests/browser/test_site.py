"""Whether the pages of a report do what they offer, in a browser that is offline."""

import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest


def fragment(page):
    """The state that the address holds."""
    return {k: v[0] for k, v in parse_qs(urlsplit(page.url).fragment).items()}


def names(page):
    return page.locator("tbody th").all_inner_texts()


def expected(run, keep=lambda neuron: True, key=lambda neuron: neuron.values["score"], sign=-1):
    """The names of a view: by a key, those without one last, ties by name."""

    def natural(name):
        return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)]

    kept = [neuron for neuron in run.neurons if keep(neuron)]
    known = [neuron for neuron in kept if key(neuron) is not None]
    known.sort(key=lambda neuron: natural(neuron.name))
    known.sort(key=lambda neuron: sign * key(neuron))
    return [n.name for n in known], len(kept)


def check_rows(page, run, *arguments, **options):
    known, count = expected(run, *arguments, **options)
    shown = names(page)
    assert len(shown) == min(50, count)
    # The browser has six digits, and its own order of letters and signs among equals.
    by_name = {neuron.name: neuron for neuron in run.neurons}
    key = options.get("key", lambda neuron: neuron.values["score"])
    keys = ([key(by_name[name]) for name in view[:50]] for view in (shown[: len(known)], known))
    np.testing.assert_allclose(*keys, rtol=1e-5)
    assert count == len(run.neurons) or f"{count:,} of {len(run.neurons):,} neurons" in (
        page.locator(".count").inner_text()
    )


def test_the_table_sorts_by_any_column(open_page, sites):
    page = open_page(sites.all / "index.html", width=2560)
    assert page.locator(".count").inner_text() == "4,000 neurons"
    check_rows(page, sites.large)
    heads = page.locator("thead th:has(button)")
    assert heads.count() == 14
    for column, key in (("K_eff", "k_eff"), ("p", "p_value"), ("score_paper", "score_paper")):
        button = page.get_by_role("button", name=column, exact=True)
        for _ in range(2):
            button.click()
            falling = page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
            assert fragment(page)["sort"] == ("-" if falling else "") + key
            check_rows(page, sites.large, key=lambda n: n.values[key], sign=-1 if falling else 1)
    page.get_by_role("button", name="Neuron", exact=True).click()
    first = names(page)[:12]
    stage = [name for name in first if name.startswith("stage.0:")]
    assert stage == [f"stage.0:{i}" for i in range(len(stage))]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_the_table_filters_and_its_state_is_in_the_address(open_page, sites):
    page = open_page(sites.all / "index.html")
    page.get_by_label("Name").fill("STAGE.1: 7")
    page.get_by_label("lowest score").fill("0.2")
    page.get_by_label("highest score").fill("0.6")
    page.locator("select[name=k]").select_option("2")

    def wanted(neuron):
        score, name = neuron.values["score"], neuron.name
        return (
            "stage.1:" in name
            and "7" in name
            and neuron.values["k"] == 2
            and score is not None
            and 0.2 <= score <= 0.6
        )

    check_rows(page, sites.large, wanted)
    state = {"q": "STAGE.1: 7", "min": "0.2", "max": "0.6", "k": "2"}
    assert fragment(page) == state
    again = open_page(sites.all / "index.html", "#" + urlsplit(page.url).fragment)
    assert names(again) == names(page)
    assert again.get_by_label("Name").input_value() == "STAGE.1: 7"
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".count").inner_text() == "4,000 neurons"
    assert fragment(page) == {}
    page.get_by_label("Status").select_option("dead")
    check_rows(page, sites.large, lambda neuron: neuron.values["status"] == "dead")
    page.get_by_role("button", name="Clear").click()
    layer = sites.large.layers[2]
    page.locator("select[name=layer]").select_option(layer.slug)
    check_rows(page, sites.large, lambda neuron: neuron.layer == layer.name)
    page.get_by_label("Name").fill("no such neuron")
    assert names(page) == []


def test_the_table_has_pages_and_pictures(open_page, sites):
    page = open_page(sites.all / "index.html")
    first = names(page)
    page.get_by_role("button", name="Next").click()
    assert fragment(page) == {"page": "2"}
    assert not set(names(page)) & set(first)
    assert page.locator(".pager .place").inner_text() == "Page 2 of 80"
    page.get_by_role("button", name="Previous").click()
    assert names(page) == first
    page.get_by_role("button", name="Pictures").click()
    cards = page.locator(".cards > li")
    assert cards.count() == 24
    by_name = {neuron.name: neuron for neuron in sites.large.neurons}
    for card in (cards.nth(i) for i in range(3)):
        neuron = by_name[card.locator(".name").inner_text()]
        # A frame for each feature.
        assert card.locator(".frame .label b").count() in (neuron.values["k"], 0)
    assert not page.locator("table").is_visible()
    assert fragment(page)["view"] == "pictures"


def test_a_whole_name_is_found_first(open_page, sites):
    page = open_page(sites.all / "index.html")
    for name in ("stage.1:1", "stage.3:12"):
        page.get_by_label("Name").fill(name)
        shown = names(page)
        assert len(shown) > 1
        assert shown[0] == name
    page.get_by_label("Name").fill("STAGE.1: 1")
    assert "stage.1:1" in names(page)


def test_the_first_screen_shows_legible_pictures(open_page, sites):
    page = open_page(sites.site / "index.html", width=1440)
    seen = page.evaluate(
        """() => [...document.querySelectorAll(".top a.tile")]
            .map((tile) => tile.getBoundingClientRect())
            .filter((box) => box.bottom <= 900 && box.right <= 1440).map((box) => box.width)"""
    )
    assert len(seen) >= 6
    assert min(seen) >= 100
    best = max(sites.small.neurons, key=lambda neuron: neuron.values["score"] or 0)
    first = page.locator(".top > li").first
    assert first.locator(".name").inner_text() == best.name
    assert first.locator("a.tile").count() == best.values["k"]
    assert page.locator("details:not(.layers)[open]").count() == 0


def test_images_enlarge_by_click_and_by_key(open_page, sites):
    page = open_page(sites.site / "index.html")
    card = page.locator(".top > li").first
    tiles = card.locator("a.tile")
    tiles.first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    caption = dialog.locator("figcaption")
    said = [tile.locator("img").get_attribute("alt") for tile in tiles.all()]
    assert "feature 1" in said[0]
    assert caption.inner_text() == said[0]
    assert dialog.locator(".tile").bounding_box()["width"] > 400
    page.keyboard.press("ArrowRight")
    assert caption.inner_text() == said[1 % len(said)]
    dialog.get_by_role("button", name="Previous").click()
    assert caption.inner_text() == said[0]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # The page has not been left, and the focus is where it was.
    assert page.locator("h1").inner_text() == sites.small.name
    assert tiles.first.evaluate("tile => tile === document.activeElement")
    page.goto(odd_page(sites)[1].as_uri())
    page.locator(".tiles a.tile").nth(1).click()
    assert dialog.is_visible()
    page.keyboard.press("Escape")
    assert page.url == odd_page(sites)[1].as_uri()


def test_colours_stand_for_features_on_one_neurons_page_alone(open_page, sites):
    colours = """(selector) => [...new Set([...document.querySelectorAll(selector)]
        .map((frame) => getComputedStyle(frame).borderTopColor))].length"""
    page = open_page(sites.site / "index.html", "#view=pictures")
    assert page.locator(".frame").count() > 24
    assert page.evaluate(colours, ".frame") == 1
    assert page.evaluate(colours, ".typical li") == 1
    several = next(n for n in sites.small.neurons if (n.values["k"] or 0) > 2)
    page = open_page(sites.site / "neurons" / f"{several.slug}.html")
    assert page.evaluate(colours, ".feature") >= several.values["k"]


def test_words_in_the_address_cannot_break_the_page(open_page, sites):
    page = open_page(sites.site / "index.html", "#sort=nothing&page=-7&view=__proto__&k=x&min=x")
    assert page.locator("thead th[aria-sort=descending]").inner_text().startswith("Score")
    assert page.locator("table").is_visible()
    page = open_page(sites.site / "index.html", "#q=<script>")
    odd = [neuron.name for neuron in sites.small.neurons if "<script>" in neuron.name]
    assert sorted(names(page)) == sorted(odd)
    assert page.title() == f"{sites.small.name} \N{EN DASH} polysemanticity of neurons"


def test_a_layer_has_its_own_table(open_page, sites):
    layer = sites.small.layers[0]
    page = open_page(sites.site / "layers" / f"{layer.slug}.html")
    assert sorted(names(page)) == sorted(sites.small.neurons[i].name for i in layer.positions)
    assert page.locator(".drawing svg:visible").count() == 2
    page.locator(".turn a[rel=next]").click()
    assert page.locator("h1").inner_text() == sites.small.layers[1].name


def odd_page(sites):
    odd = next(neuron for neuron in sites.small.neurons if "<script>" in neuron.name)
    return odd, sites.site / "neurons" / f"{odd.slug}.html"


def test_a_neuron_is_shown_and_its_name_not_run(open_page, sites):
    odd, path = odd_page(sites)
    page = open_page(path)
    assert page.locator("h1").inner_text() == odd.name
    assert odd.name in page.title()
    assert page.locator(".drawing svg:visible").count() == 1
    tiles = page.locator(".tiles a.tile")
    assert tiles.count() == odd.values["num_images"]
    # The sheet has four columns, and each tile shows one of its places.
    shown = page.evaluate(
        """async () => {
            const tiles = [...document.querySelectorAll(".tiles a.tile")];
            await Promise.all(tiles.map((tile) => {
                tile.firstChild.loading = "eager";
                return tile.firstChild.decode();
            }));
            return tiles.map((tile) => {
                const [a, b] = [tile, tile.firstChild].map((e) => e.getBoundingClientRect());
                return [(a.x - b.x) / a.width, (a.y - b.y) / a.height, b.width / a.width,
                        tile.firstChild.naturalWidth];
            });
        }"""
    )
    for place, (column, row, across, pixels) in enumerate(shown):
        assert (round(column), round(row)) == (place % 4, place // 4)
        assert abs(across - 4) < 0.1
        assert pixels == 4 * 32
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()


def test_neurons_are_turned_by_keys_in_the_order_of_the_view(open_page, sites):
    page = open_page(sites.site / "index.html", "#sort=k_eff&status=ok")
    shown = names(page)
    page.locator("tbody th a").nth(1).click()
    heading = page.locator("h1")
    assert heading.inner_text() == shown[1]
    assert page.locator(".turn .place").inner_text() == f"2 of {len(shown)}"
    for key, place in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 0), ("k", 0)):
        page.wait_for_load_state()
        page.keyboard.press(key)
        page.get_by_role("heading", level=1, name=shown[place], exact=True).wait_for()
    page.wait_for_load_state()
    page.keyboard.press("Escape")
    page.wait_for_url("**/index.html#**")
    assert fragment(page) == {"sort": "k_eff", "status": "ok"}
    page.keyboard.press("/")
    page.keyboard.type("stage.0:1")
    assert all("stage.0:1" in name for name in names(page))
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "BODY"


def test_a_slash_leads_from_a_neuron_to_the_search(open_page, sites):
    page = open_page(odd_page(sites)[1])
    page.keyboard.press("/")
    page.wait_for_url("**/index.html*")
    page.locator("input[name=q]:focus").wait_for()
    assert fragment(page) == {}


def test_the_theme_is_kept(open_page, sites):
    page = open_page(sites.site / "index.html", theme="dark")

    def is_light():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return min(map(int, re.findall(r"\d+", colour))) > 200

    assert not is_light()
    page.get_by_role("button", name="Switch to the light theme").click()
    assert is_light()
    page.goto((sites.site / "layers" / f"{sites.small.layers[0].slug}.html").as_uri())
    assert is_light()


def test_paper_is_light_and_shows_pictures(open_page, sites):
    page = open_page(sites.site / "index.html", theme="dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page')")
    assert ground == "#ffffff"
    assert not page.locator(".filters").is_visible()
    assert page.locator(".top img").first.is_visible()
    hidden = "getComputedStyle(document.querySelector('.thumb a'), '::after').display"
    assert page.evaluate(hidden) == "none"


def test_a_neuron_reads_without_scripts(open_page, sites):
    odd, path = odd_page(sites)
    page = open_page(path, java_script_enabled=False)
    text = page.locator("main").inner_text()
    assert odd.name in text
    assert "Feature 1" in text
    assert page.locator(".drawing svg").first.is_visible()
    assert page.locator(".tiles img").first.is_visible()
    page.goto((sites.site / "layers" / f"{sites.small.layers[0].slug}.html").as_uri())
    assert page.locator(".plain a").count() == len(sites.small.layers[0].positions)


def test_a_comparison_leads_to_both_runs(open_page, sites):
    page = open_page(sites.comparison / "index.html")
    assert page.locator(".drawing svg:visible").count() == 2
    shown = page.locator("tbody tr td:last-child").all_inner_texts()
    changes = [abs(float(text.replace("\N{MINUS SIGN}", "-"))) for text in shown if "." in text]
    assert changes[1:] == sorted(changes[1:], reverse=True)
    page.locator("td.thumb a").nth(1).click()
    assert "/runs/2-again/neurons/" in page.url
    page.go_back()
    name = page.locator("tbody th a[href*=neurons]").first
    text = name.inner_text()
    name.click()
    assert page.locator("h1").inner_text() == text
    assert "/runs/1-small/neurons/" in page.url
    page.get_by_role("link", name="Comparison").click()
    assert page.locator("h1").inner_text().startswith("small")


def kinds(sites):
    """A page of every kind."""
    _, neuron = odd_page(sites)
    return [
        sites.site / "index.html",
        sites.site / "layers" / f"{sites.small.layers[-1].slug}.html",
        neuron,
        sites.comparison / "index.html",
    ]


@pytest.mark.parametrize("width", [360, 2560])
def test_no_page_is_wider_than_the_window(open_page, sites, width):
    for path in kinds(sites):
        page = open_page(path, width=width)
        page.locator(".drawing svg:visible").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_accessible(open_page, sites, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    quick = {"preload": False, "resultTypes": ["violations"]}
    for path in kinds(sites):
        page = open_page(path, theme=theme)
        found = axe.run(page, options=quick).response["violations"]
        grave = [
            (rule["id"], [node["target"] for node in rule["nodes"]][:3])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert grave == [], path
