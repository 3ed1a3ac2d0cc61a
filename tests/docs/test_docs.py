"""What the README and the docs show is so: commands run, Python runs, links lead somewhere."""

import dataclasses
import functools
import importlib
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from example_rows import make_dead, make_row

import polylight
from benchmarks import render
from benchmarks.__main__ import BENCHMARKS
from benchmarks.machine import ROOT
from polylight import data, fit
from polylight.ascent.engine import Engine
from polylight.ascent.judge import Judge
from polylight.ascent.pool import Pool
from polylight.cli import COMMANDS, main
from polylight.inspect.neuron_table import MEDIAN
from polylight.module import PolysemanticityModule
from polylight.photos import store as photos
from polylight.run import manifest
from polylight.run.schema import SCHEMA
from polylight.run.session import RunSession
from polylight.run.store import RunStore, read_run
from polylight.scoring.scorer import Scorer

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"(<!-- parsed, not run -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FOLDERS = ("polylight/", "docs/", "benchmarks/", "configs/", "tests/", "kernels/", ".ci/")


def prose(page):
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def blocks(*languages):
    """The fenced blocks of some languages: page, whether it is marked, and text."""
    found = [
        (page, *match.groups()) for page in PAGES for match in _FENCE.finditer(page.read_text())
    ]
    return [(page, bool(mark), text) for page, mark, kind, text in found if kind in languages]


def commands(*, marked):
    """The commands of shell blocks, as words, without environment, ``srun`` and comments."""
    found = {}
    for page, mark, text in blocks("sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and (words[0] == "srun" or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
                words = words[1:]
            if words and mark == marked:
                found.setdefault(shlex.join(words), page.name)
    return [pytest.param(shlex.split(c), id=f"{page}: {c}") for c, page in found.items()]


def anchors(page):
    """What GitHub and Sphinx make of the headings of a page."""
    titles = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A place like a clone, with two small runs in it."""
    place = tmp_path_factory.mktemp("clone")
    (place / "configs").symlink_to(ROOT / "configs")
    for name in ("a", "b"):
        rows = [make_row("blocks.4:17"), make_row("blocks.4:5", k=1, score=0.1), make_dead()]
        rows[2] = dataclasses.replace(rows[2], neuron="blocks.4:6")
        store = RunStore(place / "runs" / name)
        store.append(rows)
        store.close()
        (place / "runs" / name / "tensorboard").mkdir()
    return place


@pytest.fixture
def run_polylight(workspace, monkeypatch, capsys):
    """Runs a command in the workspace: its exit status and what it prints."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")

    def run(words):
        try:
            status = main([os.path.expandvars(word) for word in words])
        except SystemExit as end:
            status = end.code or 0
        out = capsys.readouterr()
        assert status == 0, out.err
        return out.out

    return run


@pytest.mark.parametrize("words", commands(marked=False))
def test_commands_run(words, workspace, run_polylight):
    program, *rest = words
    if program == "polylight" and rest[0] in ("fit", "validate") and "--help" not in rest[1]:
        # Minutes of work: its own parser reads it and prints the settings.
        settings = yaml.safe_load(run_polylight([*rest, "--print_config"]))
        assert settings["subjects" if rest[0] == "validate" else "data"]
    elif program == "polylight":
        few = ["--image_size", "64"] if rest[0] == "check" else []
        assert run_polylight([*rest, *few]) or rest[0] == "report"
    elif program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[:3] == ["python", "-m", "benchmarks.render"]:
        assert render.main(["--check"]) == 0
    elif words[:3] == ["python", "-m", "benchmarks"]:
        assert set(words[3:]) <= set(BENCHMARKS)
    elif program == "tensorboard":
        assert importlib.import_module("tensorboard")
        assert (workspace / rest[rest.index("--logdir") + 1]).is_dir()
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        name, extras = re.fullmatch(r"(\w+)\[(.+)\]", words[2]).groups()
        assert name == project["name"]
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    else:
        pytest.fail(f"no test knows what {shlex.join(words)} should do")


@pytest.mark.parametrize("words", commands(marked=True))
def test_commands_that_are_not_run_name_files_that_exist(words):
    known = (
        "polylight",
        "python",
        "python3",
        ".venv/bin/pip",
        ".venv/bin/uv",
        "touch",
        ".ci/bare_root.sh",
    )
    assert words[0] in known
    for word in words:
        if word.startswith(_FOLDERS) or word.endswith((".txt", ".yaml")):
            assert (ROOT / word).exists()


# Settings with which a neuron takes a moment.
SMALL = {"image_size": 32, "max_steps": 6, "pool_size": 8, "reference_images": 8}


@pytest.fixture(scope="module")
def small():
    """A network, an embedder and a run of them, by the names that the docs have for them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential()
        net.add_module("layer1", torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU()))
        net.add_module("layer4", torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, 2), torch.nn.ReLU()))
        net.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
        net.add_module("flatten", torch.nn.Flatten())
        net.add_module("fc", torch.nn.Linear(16, 10))
    embedder = tiny.embedder()
    run = polylight.score(net, "layer4:0-3", embedder=embedder, device="cpu", **SMALL)
    return {"net": net, "embedder": embedder, "run": run}


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(text, id=f"{page.name} {i}")
        for i, (page, _, text) in enumerate(blocks("python"))
    ],
)
def test_python_runs(code, workspace, monkeypatch, tmp_path, small):
    if "datasets" in code:
        datasets = importlib.import_module("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(workspace)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(16, 4, generator=generator)
    given = {
        "embeddings": embeddings,
        "activations": torch.rand(16, generator=generator) + 1,
        "center": embeddings.mean(0),
        **small,
    }
    # The docs are of networks that take minutes.
    for name in ("score", "visualize"):
        cheap = functools.partial(getattr(polylight, name), device="cpu", **SMALL)
        if name == "score":
            cheap.keywords["embedder"] = small["embedder"]
        monkeypatch.setattr(polylight, name, cheap)
    exec(compile(code, "docs", "exec"), given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for address in _LINK.findall(prose(page)):
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {address}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {address}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    for name in _INLINE.findall(prose(page)):
        if name.startswith(_FOLDERS) and re.fullmatch(r"[\w./-]+", name):
            assert (ROOT / name).exists() or (ROOT / "polylight" / name).exists(), name


def test_settings_that_are_named_exist(run_polylight):
    words = ["fit", "--run_dir", "runs/x", "--data.neurons", "blocks.4:0", "--print_config"]
    settings = yaml.safe_load(run_polylight(words))
    named = {name for page in PAGES for name in re.findall(r"--(\w+)\.(\w+)", page.read_text())}
    assert len(named) > 10
    for group, name in named:
        assert name in settings[group], f"--{group}.{name}"


def test_readme_is_a_first_screen():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# What each file of the reader's path does with a neuron.
READER_PATH = {
    "fit.py": (fit, "fit"),
    "data.py": (data.NeuronDataModule, "select"),
    "module.py": (PolysemanticityModule, "training_step"),
    "ascent/engine.py": (Engine, "turn"),
    "ascent/pool.py": (Pool, "climb"),
    "ascent/judge.py": (Judge, "judge"),
    "scoring/scorer.py": (Scorer, "rows"),
    "run/session.py": (RunSession, "append"),
}


def test_a_neuron_meets_the_files_of_the_reader_path_in_their_order(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^\d\. `polylight/(.+?)`", readme, re.MULTILINE) == list(READER_PATH)
    called = []
    for path, (owner, name) in READER_PATH.items():
        original = getattr(owner, name)
        assert original.__code__.co_filename.endswith(f"/polylight/{path}")

        # Lightning looks at the names of what training_step takes.
        @functools.wraps(original)
        def noted(*args, _path=path, _original=original, **kwargs):
            called.append(_path)
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)
    tiny = {
        "--data.neurons": "conv2:3",
        "--run_dir": tmp_path / "run",
        "--model.subject": "tiny:subject",
        "--model.embedder": "tiny:embedder",
        "--model.image_size": 32,
        "--model.max_steps": 12,
        "--model.max_images": 4,
        "--model.pool_size": 4,
        "--model.reference_images": 24,
        "--trainer.accelerator": "cpu",
        "--trainer.enable_progress_bar": "false",
    }
    assert main(["fit", *(str(word) for option in tiny.items() for word in option)]) == 0
    # Making the reference and the first turns call some of them, too: look from the turn on.
    rest = iter(called)
    assert all(path in rest for path in READER_PATH)
    assert called[-1] == "run/session.py"
    assert read_run(tmp_path / "run").num_rows == 1


def test_glossary_has_every_column_and_no_other():
    glossary = (ROOT / "docs" / "glossary.md").read_text().split("## Terms")[0]
    assert re.findall(r"^\| `(\w+)` \|", glossary, re.MULTILINE) == [*SCHEMA.names, MEDIAN]


def test_terms_of_the_glossary_are_in_order():
    terms = (ROOT / "docs" / "glossary.md").read_text().split("## Terms")[1]
    names = re.findall(r"^- \*\*(.+?)\*\*", terms, re.MULTILINE)
    assert names == sorted(names, key=lambda name: name.replace("-", " "))


def test_run_directory_has_every_key_of_the_manifest_and_column_of_the_photos():
    named = set(_INLINE.findall(prose(ROOT / "docs" / "run-directory.md")))
    keys = {field.name for field in dataclasses.fields(manifest.Manifest)}
    assert keys | set(manifest._DERIVED) | {"schema_version"} <= named
    assert {*photos._NEURONS.names, *photos._PHOTOS.names} <= named


def test_contributing_lists_every_room():
    package = ROOT / "polylight"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    table = (ROOT / "docs" / "contributing.md").read_text()
    assert set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)) == rooms


def test_every_command_is_shown():
    shown = {
        words.values[0][1] for words in commands(marked=False) if words.values[0][0] == "polylight"
    }
    assert set(COMMANDS) <= shown


def test_markdown_that_only_some_readers_understand_is_not_used():
    for page in PAGES:
        kinds = {kind for _, kind, _ in _FENCE.findall(page.read_text())}
        assert kinds <= {"sh", "bash", "python", "text", "toctree"}, page
        assert Path(page).read_text().count("```") % 2 == 0
