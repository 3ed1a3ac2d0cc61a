import logging
import subprocess
import sys

import pytest
from example_rows import make_row
from report_fakes import Page

from polylight.errors import InputError
from polylight.report.command import is_report, report
from polylight.report.folder import check_folder, replacing
from polylight.report.rasters import MOST_PIXELS
from polylight.report.site import GENERATOR
from polylight.run.lock import hold
from polylight.run.store import RunStore


def fill(folder, text="new"):
    (folder / "index.html").write_text(text)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "report"
    with replacing(path) as folder:
        fill(folder, "old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path) as folder:  # noqa: PT012
        fill(folder)
        raise KeyboardInterrupt
    assert (path / "index.html").read_text() == "old"
    with replacing(path) as folder:
        fill(folder)
        assert (path / "index.html").read_text() == "old"
    assert (path / "index.html").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_cleared(tmp_path):
    path = tmp_path / "re[p]ort"
    (tmp_path / ".re[p]ort.0123.tmp").mkdir()
    fill(tmp_path / ".re[p]ort.0123.tmp")
    alive = tmp_path / ".re[p]ort.4567.tmp"
    alive.mkdir()
    # Killed between its two names.
    old = tmp_path / ".re[p]ort.old"
    old.mkdir()
    fill(old, "old")
    # Killed before it made its folder.
    (tmp_path / ".re[p]ort.89ab.lock").touch()
    held = tmp_path / ".re[p]ort.4567.lock"
    release = hold(held)
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    release()
    assert (path / "index.html").read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, held])


def test_foreign_folders_are_not_touched(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<title>my site</title>")
    with pytest.raises(InputError, match=r"not empty and no report of polylight"):
        check_folder(tmp_path, is_ours=is_report)
    with pytest.raises(InputError, match=r"is no directory; move it away or choose another --out"):
        check_folder(page, is_ours=is_report)
    page.write_text(f'<meta name="generator" content="{GENERATOR}">')
    check_folder(tmp_path, is_ours=is_report)
    assert list(tmp_path.iterdir()) == [page]
    check_folder(tmp_path / "a" / "b", is_ours=is_report)
    with pytest.raises(InputError, match=r"cannot write in .*; choose another --out"):
        check_folder(page / "report", is_ours=is_report)


def test_reports_of_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no run was given"):
        report([])
    with pytest.raises(InputError, match="nowhere"):
        report([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=str(tmp_path)):
        report([str(tmp_path)])
    store = RunStore(tmp_path / "run")
    with pytest.raises(InputError, match="run"):
        report([str(tmp_path / "run")])
    store.append([make_row("a:1"), make_row("a:2")])
    store.close()
    with pytest.raises(InputError, match=r"--neurons: .* has no 'a:3'; nearest: a:[12]"):
        report([str(tmp_path / "run")], neurons=["a:3"])
    with pytest.raises(InputError, match="--neurons chooses the neurons of the PDF, but --pdf is"):
        report([str(tmp_path / "run")], neurons=["a:1"], pdf=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["neurons"]


@pytest.mark.parametrize("package", ["jinja2", "threadpoolctl", "altair", "vl_convert", "typst"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}; pip install 'polylight\[reports\]'"):
        report(["run"])


def test_unreadable_parts_are_named_after_the_rest_is_written(tmp_path, capsys, caplog):
    run = tmp_path / "run"
    store = RunStore(run)
    store.append([make_row("a:1")])
    broken = store.append([make_row("a:2")])
    store.close()
    broken.write_bytes(b"PAR1")
    with caplog.at_level(logging.ERROR, "polylight"):
        assert report([str(run)], pdf=False) == 1
    assert str(broken) in caplog.text
    assert capsys.readouterr().out == f"{run}/report/index.html\n"
    text = Page(run / "report" / "index.html").text
    assert str(broken) in text
    assert "a:1" in (run / "report" / "assets" / "neurons.js").read_text()
    assert is_report(run / "report")


@pytest.mark.parametrize("pdf", [False, True])
def test_a_damaged_image_is_named_and_all_neurons_are_shown(tmp_path, caplog, pdf):
    run = tmp_path / "run"
    store = RunStore(run)
    damaged = make_row("a:2", n=8)
    part = store.append([make_row("a:1", n=8), damaged, make_row("a:3", n=8)])
    assert report([str(run)], pdf=pdf) == 0
    before = contents(run / "report")
    store.append([make_row("a:4", n=8)])
    part.unlink()
    damaged.image[5] = damaged.image[5][:-30]
    part = store.append([make_row("a:1", n=8), damaged, make_row("a:3", n=8)])
    store.close()
    with caplog.at_level(logging.ERROR, "polylight"):
        assert report([str(run)], pdf=pdf) == 1
    after = contents(run / "report")
    lost = f"image 5 of neuron a:2 is no readable PNG file of at most {MOST_PIXELS:,} pixels"
    assert f"{part}: {lost}" in caplog.text
    assert f"{part}: {lost}" in Page(run / "report" / "index.html").text
    assert set(before) < set(after)
    pages = {path.stem: Page(path).text for path in (run / "report" / "neurons").iterdir()}
    assert {name for name, text in pages.items() if lost in text} == {"a-2"}
    assert f"A crossed tile stands for what is damaged: {lost}." in pages["a-2"]
    pictures = {name for name in before if name.startswith("images/")}
    assert {name for name in pictures if before[name] != after[name]} == {"images/a-2.jpg"}


def test_a_report_needs_no_torch_and_nothing_of_the_validation():
    code = """if True:
        import sys
        from polylight.report import command, compare, gather, site
        heavy = ("torch", "sklearn", "lightning", "polylight.planted", "polylight.scoring")
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
