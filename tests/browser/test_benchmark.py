"""The benchmark of a report's page, in the browser that it measures."""

from benchmarks import report


def test_page_is_opened_and_filtered_in_a_browser(tmp_path):
    page = tmp_path / "index.html"
    page.write_text(
        """<!doctype html><meta charset="utf-8"><p class="count">none</p><input name="q">
        <script>document.querySelector("input").addEventListener("input", (event) => {
          const end = performance.now() + 20;
          while (performance.now() < end);
          document.querySelector(".count").textContent = event.target.value;
        });</script>"""
    )
    seen = report.watch_page(page, ["a", "last"], 1)
    assert seen["count"] == "last"
    assert len(seen["paints"]) == 1
    assert len(seen["filters"]) == 2
    assert min(seen["filters"]) >= 20
    assert seen["paints"][0] > 0
