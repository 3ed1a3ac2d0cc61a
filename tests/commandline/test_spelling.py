from argparse import Namespace
from pathlib import Path

import pytest

from polylight.commandline.spelling import (
    collect_lists,
    expand_home,
    expand_options,
    files_first,
    join_signed,
    set_switches,
)
from polylight.errors import InputError


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("", ""),
        ("--json R", "--json=true R"),
        ("R --json", "R --json=true"),
        ("R --json false --csv", "R --json false --csv=true"),
        ("R --json=false", "R --json=false"),
        ("R --sort -score --json", "R --sort=-score --json=true"),
        ("--top -3 -h", "--top=-3 -h"),
        ("--sort score -h R", "--sort score -h R"),
        ("--top -h", "--top -h"),
        ("R -x --sort --json", "R -x --sort --json=true"),
    ],
)
def test_switches_stand_alone_and_values_may_have_a_minus(given, spelt):
    assert join_signed(set_switches(given.split(), ["json", "csv"])) == spelt.split()


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        (["--n", "a:1"], ['--n=["a:1"]']),
        (["--n=a:1"], ['--n=["a:1"]']),
        (["--n", "a:1", "b:2-3", "--x", "y"], ['--n=["a:1", "b:2-3"]', "--x", "y"]),
        (["--n", "a:1,b:2"], ['--n=["a:1", "b:2"]']),
        (["--n", "max(a:1,b:2)"], ['--n=["max(a:1,b:2)"]']),
        (["--n", "a:1,max(a:1, b:2),c:*"], ['--n=["a:1", "max(a:1, b:2)", "c:*"]']),
        (["--n", "-a:1", "-b:2"], ['--n=["-a:1", "-b:2"]']),
        (["--n", "a:1", "--x", "y", "--n", "b:2"], ['--n=["a:1", "b:2"]', "--x", "y"]),
        (["--n", "a:1", "-c", "f.yaml"], ['--n=["a:1"]', "-c", "f.yaml"]),
        (["--n", '["a:1"]'], ['--n=["a:1"]']),
        (['--n=["a:1", "b:2"]', "z"], ['--n=["a:1", "b:2"]', "z"]),
        (["--n=a:1", "z"], ['--n=["a:1"]', "z"]),
        (["--n"], ["--n"]),
        (["--n+", "a:1"], ["--n+", "a:1"]),
        (["--other", "a:1"], ["--other", "a:1"]),
    ],
)
def test_lists_need_no_brackets(given, spelt):
    assert collect_lists(given, ["n"]) == spelt


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("--a 1 --config x", "--config x --a 1"),
        ("--a 1 --config=x --b 2", "--config=x --a 1 --b 2"),
        ("--a 1 --model m --config x", "--config x --model m --a 1"),
        ("--config x --a 1 --config y", "--config x --config y --a 1"),
        ("--a 1 --config", "--config --a 1"),
        ("--model.a 1", "--model.a 1"),
    ],
)
def test_files_come_before_what_wins_over_them(given, spelt):
    assert files_first(given.split(), ["--config", "--model"]) == spelt.split()


def test_the_home_directory_is_expanded_wherever_a_shell_does_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    given = ["--run_dir=~/x", "--config", "~/c.yaml", "--a=x~/y", "~root", "--n=~(k>1)"]
    spelt = ["--run_dir=/home/ada/x", "--config", "/home/ada/c.yaml", *given[3:]]
    assert expand_options(given) == spelt
    nested = {"a": ["~/x", 3, None], "b": {"c": "~/y"}}
    assert expand_home(nested) == {"a": ["/home/ada/x", 3, None], "b": {"c": "/home/ada/y"}}
    space = expand_home(Namespace(a="~/x", b=[Namespace(c="~"), "~x"]))
    assert space == Namespace(a="/home/ada/x", b=[Namespace(c="/home/ada"), "~x"])
    assert expand_home(Path("~/x")) == Path("~/x")


def test_without_a_home_directory_it_says_so(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(InputError, match="'~/x': there is no home directory"):
        expand_home("~/x")
