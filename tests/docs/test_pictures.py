import pytest
from example_rows import make_dead, make_row
from PIL import Image

from benchmarks import pictures
from polylight.run.manifest import Manifest, write_manifest
from polylight.run.store import RunStore


def test_page_of_a_pdf_is_a_picture(tmp_path):
    path = tmp_path / "two.pdf"
    pages = [Image.new("RGB", (200, 300), colour) for colour in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for number, colour in enumerate([(254, 0, 0), (0, 0, 254)]):
        page = pictures.pdf_page(path, number)
        assert page.mode == "RGB"
        assert page.size == (1280, 1920)
        assert page.getpixel((640, 960)) == pytest.approx(colour, abs=1)


def test_picture_is_of_the_neuron_with_the_highest_score(tmp_path):
    rows = [make_row("a:1", score=0.2), make_dead("a:2"), make_row("a:3", score=0.7)]
    RunStore(tmp_path).append(rows)
    assert pictures.most_polysemantic(tmp_path) == "a:3"


@pytest.mark.parametrize(("status", "expected"), [("finished", []), ("running", ["fit"])])
def test_quickstart_is_run_where_it_is_not_finished(tmp_path, monkeypatch, status, expected):
    run = []
    monkeypatch.setattr(pictures, "_polylight", lambda *arguments: run.append(arguments[0]))
    monkeypatch.setattr(pictures, "make_pictures", lambda run_dir: run.append("pictures"))
    made = Manifest(status=status, seed=0, settings={}, device={})
    write_manifest(tmp_path, made)
    pictures.main(tmp_path)
    assert run == [*expected, "report", "pictures"]
    run.clear()
    pictures.main(tmp_path / "nothing")
    assert run == ["fit", "report", "pictures"]
