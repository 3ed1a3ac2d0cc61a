from example_rows import make_row
from PIL import Image

from benchmarks.pictures import make_pictures
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
from polylight.report.command import report
from polylight.run.store import RunStore


def test_pictures_of_a_run(tmp_path):
    run = tmp_path / "run"
    RunStore(run).append([make_row("a:1", score=0.2), make_row("a:3", score=0.7)])
    contact_sheet(extreme_rows(run, 4), run / "neurons.png", title="run")
    assert report([str(run)]) == 0
    folder = tmp_path / "images"
    folder.mkdir()
    make_pictures(run, folder)
    names = ["quickstart.jpg", "report-neuron.jpg", "report-pdf.jpg"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        with Image.open(folder / name) as picture:
            assert picture.format == "JPEG"
            assert picture.width <= 1280
    with Image.open(folder / "report-neuron.jpg") as page:
        assert page.size == (1280, 900)
