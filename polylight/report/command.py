"""``polylight report``: what a run directory holds, as a site to look at and a PDF."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from polylight.errors import InputError, nearest
from polylight.report.content import Run

_logger = logging.getLogger(__name__)

# Of the extra "reports".
_PACKAGES, _PDF_PACKAGES = ("jinja2", "threadpoolctl", "altair", "vl_convert"), ("weasyprint",)
# A page names its maker within these first characters.
_HEAD = 2000
_MARK = '<meta name="generator" content="polylight '


def report(
    runs: list[str],
    out: str | None = None,
    pdf: bool = True,
    neurons: list[str] | None = None,
) -> int:
    """Write a report of a run, or a comparison of several: static pages that work offline.

    A report that is there is replaced once the new one is whole.

    Args:
        runs: Directories of runs; several are compared, each with the first.
        out: Directory to write; by default RUN/report, or RUN/comparison of the first of several.
        pdf: Whether to write report.pdf into the report too.
        neurons: The neurons in the PDF, such as ``blocks.4:17 blocks.4:3``; by default the ten
            most and the ten least polysemantic.

    Returns:
        The exit status: 0, or 1 if a part of a run or an image could not be read; the rest is then
        written.

    Raises:
        InputError: If a directory is no run, a neuron is not in it, a package is missing or the
            report cannot be written there; nothing is written then.
    """
    written = write_report(runs, out, pdf=pdf, neurons=neurons)
    sys.stdout.write("".join(f"{file}\n" for file in written.pages))
    return 1 if written.is_partial else 0


class WrittenReport(NamedTuple):
    """A report on the disk."""

    pages: list[Path]
    """The page to open first, and the PDFs."""
    is_partial: bool
    """Whether a part of a run or an image could not be read; the log names it."""


def write_report(
    runs: Sequence[str],
    out: str | None = None,
    *,
    pdf: bool = True,
    neurons: Sequence[str] | None = None,
) -> WrittenReport:
    """Write what :func:`report` writes, and print nothing.

    Args:
        runs: As for :func:`report`, like the others.
        out: Likewise.
        pdf: Likewise.
        neurons: Likewise.

    Returns:
        What was written.

    Raises:
        InputError: As for :func:`report`.
    """
    check_packages(pdf=pdf)
    from polylight.report.folder import check_folder, replacing
    from polylight.report.gather import gather_run
    from polylight.report.site import write_site

    if neurons is not None and not pdf:
        raise InputError("--neurons chooses the neurons of the PDF, but --pdf is false")
    if not runs:
        raise InputError("no run was given; name the directory of one: polylight report RUN")
    default = Path(runs[0]) / ("report" if len(runs) == 1 else "comparison")
    # A link would be replaced by a directory, and what it points to would stay.
    path = Path(os.path.realpath(default if out is None else out))
    gathered = [gather_run(run) for run in runs]
    for run in gathered:
        _check_neurons(run, neurons)
    check_folder(path, is_ours=is_report)
    with replacing(path) as folder:
        if len(gathered) == 1:
            gathered = [write_site(gathered[0], folder, has_pdf=pdf)]
            sites = [(gathered[0], folder)]
        else:
            from polylight.report.compare import make_sides, write_comparison

            sides = write_comparison(make_sides(gathered), folder, has_pdf=pdf)
            gathered = [side.run for side in sides]
            sites = [(side.run, folder / side.folder) for side in sides]
        if pdf:
            from polylight.report.pdf import write_pdf

            for run, site in sites:
                write_pdf(run, site / "report.pdf", neurons=neurons)
    shown = default if out is None else Path(out)
    written = [shown / "index.html"]
    if pdf:
        written += [shown / site.relative_to(folder) / "report.pdf" for _, site in sites]
    return WrittenReport(written, _name_unreadable(gathered))


def is_report(folder: Path) -> bool:
    """Tell a report of polylight, which may be replaced, from any other folder."""
    try:
        with (folder / "index.html").open(encoding="utf-8", errors="replace") as page:
            return _MARK in page.read(_HEAD)
    except OSError:
        return False


def check_packages(*, pdf: bool = True) -> None:
    """Refuse to begin without the packages of the extra.

    Args:
        pdf: Whether there is to be a PDF too.

    Raises:
        InputError: If one is missing.
    """
    for name in ("jinja2", "threadpoolctl", "altair", "vl_convert", *(["typst"] if pdf else [])):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"a report needs the package {error.name}; pip install 'polylight[reports]'"
            ) from error


def _check_neurons(run: Run, neurons: Sequence[str] | None) -> None:
    """Refuse neurons that a run does not have."""
    known = {"".join(neuron.name.split()): neuron.name for neuron in run.neurons}
    for name in neurons or ():
        if "".join(name.split()) not in known:
            close = nearest(name, known.values())
            raise InputError(f"--neurons: {run.path} has no {name!r}; {close}")


def _name_unreadable(runs: Sequence[Run]) -> bool:
    """Say what is not in the report; tell whether there is any."""
    unreadable = [part for run in runs for part in run.unreadable]
    for part in unreadable:
        _logger.error("could not be read, and is not in the report: %s: %s", part.path, part.reason)
    return bool(unreadable)
