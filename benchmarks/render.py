"""Results to tables: in the terminal, and by ``python -m benchmarks.render`` in the docs."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks import validation
from benchmarks.document import OK, RESULTS, load_documents, machine, place
from benchmarks.machine import ROOT

_TITLES = ("what", "who", "shape", "median", "20 % to 80 %", "unit", "n", "target")


def console_table(document: Mapping[str, Any]) -> Group:
    """Lay a benchmark out for the terminal.

    Args:
        document: What its JSON holds.

    Returns:
        Something that rich prints.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for index, title in enumerate(_TITLES):
        table.add_column(title, justify="right" if index in (3, 4, 6) else "left", overflow="fold")
    for entry in _shown(document):
        style = "red" if entry["status"] != OK or entry["passed"] is False else ""
        table.add_row(*map(Text, _cells(entry)), style=style)
    return Group(table, Text(), Text(_provenance(document["metadata"]), style="dim"))


def full_tables(documents: Sequence[Mapping[str, Any]]) -> str:
    """The rows of every benchmark but details that are fine, as Markdown: a page for a machine."""
    parts = []
    for document in documents:
        meta = document["metadata"]
        parts += [f"## {meta['benchmark']}", "", _provenance(meta), ""]
        parts += [_markdown(_TITLES, [_cells(e) for e in _shown(document)]), ""]
    return "\n".join(parts).rstrip()


def short_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """The headline rows of all benchmarks, as one Markdown table; nothing where there are none."""
    keep = (0, 1, 2, 3, 4, 5, 7)
    cells = [_cells(e) for d in documents for e in d["results"] if e["level"] == "headline"]
    if not cells:
        return ""
    return _markdown([_TITLES[i] for i in keep], [[c[i] for i in keep] for c in cells])


def by_machine(documents: Sequence[Mapping[str, Any]]) -> dict[Path, list[Mapping[str, Any]]]:
    """Documents by the folder of their machine, in the order in which they come."""
    machines: dict[Path, list[Mapping[str, Any]]] = {}
    for document in documents:
        machines.setdefault(place(RESULTS, document).parent, []).append(document)
    return machines


def replace_between(text: str, table: str, name: str = "benchmarks") -> str:
    """Put a table between the two markers of a text.

    Args:
        text: Holds ``<!-- name -->`` and, later, ``<!-- /name -->``, each once.
        table: What comes between them.
        name: Of the markers.

    Returns:
        The text with the table.

    Raises:
        ValueError: If the markers are not there like that.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"expected {start} and then {end}, each once")
    before, rest = text.split(start)
    lines = f"{table}\n" if table else ""
    return f"{before}{start}\n{lines}{end}{rest.split(end)[1]}"


def rendered(documents: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """What the pages should say: that of each machine, and those with markers for tables.

    The short tables are those of the processor, and of the GPU, that were measured last.
    """
    texts: dict[Path, str] = {}
    short, links = [], []
    machines = by_machine(documents)
    newest = {m[0]["metadata"]["gpu"] is None: m for m in sorted(machines.values(), key=_when)}
    for folder, measured in machines.items():
        name, page = machine(measured[0]["metadata"]), folder / "README.md"
        texts[page] = f"# {name}\n\n{full_tables(measured)}\n"
        links.append(f"- [{name}]({page.relative_to(ROOT / 'benchmarks').as_posix()})")
        if measured in newest.values() and (table := short_table(measured)):
            where = page.relative_to(ROOT).as_posix()
            # No link: the site has no pages of other folders than docs.
            short.append(f"{name} (all rows, when and at which commit: `{where}`):\n\n{table}")
    for path, marker, table in (
        (ROOT / "benchmarks" / "README.md", "benchmarks", "\n".join(links)),
        (ROOT / "docs" / "measurements.md", "benchmarks", "\n\n".join(short)),
        (ROOT / "docs" / "validation.md", "validation", validation.kept()),
    ):
        text = texts.get(path) or (path.read_text() if path.is_file() else "")
        if f"<!-- {marker} -->" in text:
            texts[path] = replace_between(text, table, marker)
    return texts


def _when(documents: Sequence[Mapping[str, Any]]) -> str:
    """When the last of some benchmarks was run, so that later ones are larger."""
    return max(document["metadata"]["utc"] for document in documents)


def _shown(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows that a table holds; a detail only where it is red."""
    return [
        entry
        for entry in document["results"]
        if entry["level"] != "detail" or entry["status"] != OK or entry["passed"] is False
    ]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    """A row as text, in the order of the titles."""
    if entry["status"] == OK:
        spread = f"{_number(entry['p20'])} to {_number(entry['p80'])}" if entry["n"] > 1 else ""
        numbers = [_number(entry["median"]), spread]
    else:
        numbers = [entry["status"], ""]
    verdict = {None: "", True: ", met", False: ", missed"}[entry["passed"]]
    return [
        entry["case"],
        entry["provider"],
        entry["shape"],
        *numbers,
        entry["unit"],
        str(entry["n"]),
        f"{entry['target']}{verdict}",
    ]


def _number(value: float) -> str:
    """Three significant digits, and no exponent for what people read without."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _provenance(meta: Mapping[str, Any]) -> str:
    """Where the numbers come from, in a line."""
    commit = (meta["commit"] or "no commit")[:7] + (" with changes" if meta["dirty"] else "")
    others = meta["cores_used_by_others"]
    parts = [
        meta["utc"][:10],
        commit,
        machine(meta),
        f"{meta['threads']} threads",
        f"torch {meta['versions']['torch']}",
        *([] if others is None else [f"others used {others:.2f} cores"]),
    ]
    return ("quick try, not a measurement; " if meta["quick"] else "") + "; ".join(parts) + "."


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def main(args: Sequence[str] | None = None) -> int:
    """Write the tables into the pages, or with ``--check`` only compare.

    Args:
        args: The arguments; by default, those of the process.

    Returns:
        The exit status: 1 where ``--check`` found a page that is not up to date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(args).check
    texts = rendered(load_documents())
    stale = {p: t for p, t in texts.items() if not p.is_file() or p.read_text() != t}
    for path, text in stale.items():
        print(path.relative_to(ROOT), "is not up to date" if check else "written")
        if not check:
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
