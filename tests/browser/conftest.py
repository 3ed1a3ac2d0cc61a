"""A browser that the machine has, and sites for it to show."""

from types import SimpleNamespace

import pytest

from benchmarks.report import BROWSER_FLAGS
from benchmarks.report import browser as find_browser

PATH, MISSING = find_browser()


class _Skipped(pytest.Module):
    """A file of tests that is skipped whole, unread."""

    def collect(self):
        pytest.skip(f"browser tests: {MISSING}")


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None


# No longer than this module: there can be but one driver at a time.
@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=PATH, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a window; at the end nothing may have been said or asked for."""
    contexts, said, asked = [], [], []

    def open_one(path, fragment="", *, theme="light", width=1280, **options):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=theme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="session")
def sites(tmp_path_factory):
    """A small site, one of 4,000 neurons and a comparison."""
    pytest.importorskip("jinja2", reason="the extra 'reports' is not installed")
    from benchmarks.synthetic import write_synthetic_run
    from polylight.report.compare import make_sides, write_comparison
    from polylight.report.gather import gather_run, read_details
    from polylight.report.site import write_site

    folder = tmp_path_factory.mktemp("sites")
    write_synthetic_run(folder / "small", neurons=40, images=10, layers=3, size=32)
    write_synthetic_run(folder / "again", neurons=30, images=5, layers=3, size=32, seed=1)
    write_synthetic_run(folder / "large", neurons=4000, images=4, size=8)
    small, again, large = (gather_run(folder / name) for name in ("small", "again", "large"))
    for name in ("site", "all", "comparison"):
        (folder / name).mkdir()
    write_site(small, folder / "site")
    # The pages of a few neurons are enough for a table of all.
    write_site(large, folder / "all", details=read_details(large, range(100)))
    write_comparison(make_sides([small, again]), folder / "comparison")
    return SimpleNamespace(
        small=small,
        large=large,
        site=folder / "site",
        all=folder / "all",
        comparison=folder / "comparison",
    )
