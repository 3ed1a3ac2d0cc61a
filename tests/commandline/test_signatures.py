import inspect
import json
import subprocess
import sys

import pytest

from polylight.commandline.settings import fit_settings
from polylight.commandline.signatures import REQUIRED, read_signature

SOURCE = '''
import nowhere


class Thing(nowhere.Base):
    """A thing.

    Makes ``things``,
    slowly.

    Args:
        first: Of two
            lines, as ``this: that``.
        second: One.

    Raises:
        ValueError: Never.
    """

    def __init__(self, first: list[str], second: int | None = None, *, third: float = -0.5):
        self.first = first


def make(size: "Size" = Size(), *, name="a") -> None:
    """Make.

    Args:
        size: How large.
    """
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    folder = tmp_path / "package_to_read"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "things.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "package_to_read.things"


def test_a_class_is_read_without_importing_it(module):
    found = read_signature(module, "Thing")
    assert (found.summary, found.details) == ("A thing.", "Makes things, slowly.")
    first, second, third = found.parameters
    assert (first.name, first.annotation, first.kind) == ("first", "list[str]", "list[str]")
    assert first.default is REQUIRED
    assert first.help == "Of two lines, as this: that."
    assert (second.annotation, second.kind, second.default) == ("int | None", "int", None)
    assert (second.help, third.default, third.help) == ("One.", -0.5, "")
    assert module not in sys.modules


def test_a_default_that_is_computed_is_given_as_its_source(module):
    size, name = read_signature(module, "make").parameters
    assert (size.annotation, size.default, size.help) == ("'Size'", "Size()", "How large.")
    assert (name.annotation, name.default) == ("", "a")


def test_settings_are_those_of_the_classes_and_each_is_documented():
    from lightning import Trainer

    from polylight.callbacks.tensorboard import TensorBoardMonitor
    from polylight.data import NeuronDataModule
    from polylight.module import PolysemanticityModule

    read = fit_settings()
    own = {"run_dir", "config", "seed_everything", "report"}
    linked = {"model.seed", "trainer.default_root_dir"}
    classes = {
        "data": NeuronDataModule,
        "model": PolysemanticityModule,
        "tensorboard": TensorBoardMonitor,
        "trainer": Trainer,
    }
    expected = {
        f"{group}.{name}": parameter.default
        for group, kind in classes.items()
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    assert set(read) == own | set(expected) - linked
    for name in set(expected) - linked:
        default = expected[name]
        wanted = REQUIRED if default is inspect.Parameter.empty else default
        assert read[name].default == wanted, name
    assert all(p.help for name, p in read.items() if name != "trainer.enable_autolog_hparams")


def test_help_and_mistakes_load_neither_torch_nor_lightning_nor_jsonargparse():
    script = """
import contextlib, io, json, sys
from polylight.cli import main
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            said.append(main(words))
        except SystemExit as end:
            said.append(end.code)
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([said, sorted(loaded & {"torch", "lightning", "jsonargparse", "pyarrow"})]))
"""
    commands = ["fit", "layers", "query", "report", "show", "validate"]
    words = [["--help"], ["--version"], *([name, "--help"] for name in commands)]
    words += [["fot"], *([name, "--no_such_option", "1"] for name in commands)]
    found = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == [[0] * 8 + [2] * 7, []]
