"""What a function takes, read from its source: nothing is imported, so help needs no torch."""

import ast
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = object()
"""The default of a parameter that has none."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function."""

    name: str
    annotation: str
    """Its type as the source spells it, such as ``int | None``."""
    default: Any
    """A literal, or the source of an expression that is none; ``REQUIRED`` where there is none."""
    help: str
    """What its docstring says of it, as one line; may be empty."""

    @property
    def kind(self) -> str:
        """Its type without the ``None`` that says that it may be left out."""
        return self.annotation.removesuffix(" | None")


@dataclass(frozen=True)
class Signature:
    """What a function takes, and what it says of itself."""

    summary: str
    """The first line of its docstring."""
    details: str
    """What stands between the first line and the first section; may be empty."""
    parameters: tuple[Parameter, ...]
    """Without ``self``, in order."""


def read_signature(module: str, name: str) -> Signature:
    """Read the signature of a function, or of a class's constructor.

    Args:
        module: Dotted name of the module that defines it. Its source is parsed, not run.
        name: The function or class, at the top of the module.

    Returns:
        Its parameters, with the help that its docstring, or the constructor's, has for them.
    """
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, _DEFINITION) and n.name == name)
    docstrings = [ast.get_docstring(node) or ""]
    given = node if isinstance(node, ast.FunctionDef) else _constructor(node)
    if given is not node:
        docstrings.append(ast.get_docstring(given) or "")
    texts = {k: v for docstring in docstrings for k, v in _documented(docstring).items()}
    summary, _, rest = docstrings[0].partition("\n\n")
    details = re.split(r"^(?:Args|Returns|Raises|Attributes):$", rest, flags=re.MULTILINE)[0]
    return Signature(_plain(summary), _plain(details), tuple(_parameters(given.args, texts)))


_DEFINITION = (ast.FunctionDef, ast.ClassDef)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef:
    """The constructor of a class, or that which a dataclass gets for its fields."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return inner
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    names = [f"{ast.unparse(n.target)}: {ast.unparse(n.annotation)}" for n in fields]
    defaults = [f" = {ast.unparse(n.value)}" if n.value else "" for n in fields]
    arguments = ", ".join(map(str.__add__, names, defaults))
    source = f"def __init__(self, *, {arguments}): ..." if fields else "def __init__(self): ..."
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    return function


def _source(module: str) -> Path:
    """Find the source of a module without importing its package, unlike ``find_spec``."""
    package, *path = module.split(".")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r}", name=package)
    return Path(found.submodule_search_locations[0], *path).with_suffix(".py")


def _parameters(args: ast.arguments, texts: dict[str, str]) -> list[Parameter]:
    """List the parameters, those by position and those by name only."""
    named = [a for a in (*args.posonlyargs, *args.args) if a.arg != "self"]
    none = [None] * (len(named) - len(args.defaults))
    pairs = [
        *zip(named, [*none, *args.defaults], strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    return [
        Parameter(
            arg.arg,
            ast.unparse(arg.annotation) if arg.annotation else "",
            REQUIRED if default is None else _literal(default),
            texts.get(arg.arg, ""),
        )
        for arg, default in pairs
    ]


def _literal(default: ast.expr) -> Any:
    """The value of a default, or its source where it has to be computed."""
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _documented(docstring: str) -> dict[str, str]:
    """Read the section ``Args`` of a docstring in Google's style."""
    section = re.search(r"^Args:\n((?:[ \t].*\n?|\n)*)", docstring, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): (.*(?:\n(?:     .*)?)*)", section[1], re.MULTILINE)
    return {name: _plain(text) for name, text in entries}


def _plain(text: str) -> str:
    """Put text in one line, without the marks of reStructuredText."""
    return " ".join(text.replace("``", "").split())
