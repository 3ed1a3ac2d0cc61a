"""What one session of a run adds to the folder that TensorBoard reads."""

import functools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from polylight.callbacks.tensorboard.grid import cluster_grid, read_images
from polylight.callbacks.tensorboard.options import Options
from polylight.callbacks.tensorboard.projector import Projector
from polylight.run.reported import ReportedScore
from polylight.run.schema import NeuronRow

_LAYOUT_TAG = "custom_scalars__config__"
_LAYOUT: Mapping[str, Mapping[str, Any]] = {
    "Throughput": {
        "image-steps per second": ["Multiline", ["pool/image_steps_per_second"]],
        "occupancy of the pool": ["Multiline", ["pool/occupancy"]],
    },
    "Progress": {
        "neurons": ["Multiline", ["neurons/.*"]],
        "images": ["Multiline", ["images/finished"]],
    },
}
_GRID = "neuron/"
_BINS = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, counted over all its sessions."""

    images: int = 0
    """Images finished."""
    image_steps: int = 0
    """Ascent steps, summed over the images."""
    seconds: float = 0.0
    """Seconds of ascent."""
    occupancy: float = 0.0
    """Part of the slots' steps that moved an image, in [0, 1]."""
    mean_activation: float | None = None
    """Of the images that climb now; None where none does."""


def read_events(folder: str | Path) -> tuple[int, frozenset[str]]:
    """Read the last step and all tags of a folder's event files.

    A file is read up to the record that a killed process left unfinished.

    Args:
        folder: Where the event files are, not in folders below; it may be missing.

    Returns:
        The step, 0 without events, and the tags.
    """
    step, tags = 0, set[str]()
    for path in sorted(Path(folder).glob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            step = max(step, event.step)
            tags.update(value.tag for value in event.summary.value)
    return step, frozenset(tags)


class RunSummaries:
    """Writes event files and the projector's files, on from what earlier sessions have written.

    Steps are counted on from the last one that is there, so that curves go on where they ended.

    Args:
        folder: The folder, made if need be.
        options: What is wanted.
        centre: Turns embeddings float32 [N, D] into the unit vectors that the embedder compares.
        earlier: How far earlier sessions have come.
        score: The one that is shown; tags have its name.
    """

    def __init__(
        self,
        folder: Path,
        options: Options,
        centre: Callable[[Tensor], Tensor],
        earlier: Progress,
        score: ReportedScore = "score",
    ) -> None:
        self._options, self._centre, self._score = options, centre, score
        self._offset, self._tags = read_events(folder)
        _leave_errors_to_caller()
        self._writer = SummaryWriter(folder)
        self._events: Any = self._writer.file_writer
        most = options.max_projected if options.projector else 0
        self._projector = Projector(folder, most, score)
        self._drawn = {t.removeprefix(_GRID) for t in self._tags if t.startswith(_GRID)}
        self._statuses: dict[str, str] = {}
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._grown: set[str] = set()
        self._last, self._last_step = earlier, self._offset
        self._written = self._summarised = time.perf_counter()

    def describe(self, settings: Mapping[str, str | float], group: str) -> None:
        """Write the settings and the layout, where they are not there yet.

        This comes first, so that a run that is killed has them. ``SummaryWriter.add_hparams`` would
        write another event file at every call, and say of a run that has just begun that it
        succeeded. TensorBoard finds out by itself in which settings the runs of a folder differ,
        as long as none of them says which settings there are.

        Args:
            settings: Of the run.
            group: Name of the run, common to processes that share it.
        """
        if self._options.hparams and SESSION_START_INFO_TAG not in self._tags:
            self._events.add_summary(hparams_pb(dict(settings), trial_id=group))
        if self._options.layout and _LAYOUT_TAG not in self._tags:
            medians = {"median by layer": ["Multiline", [f"{self._score}_median/.*"]]}
            self._writer.add_custom_scalars({**_LAYOUT, "Scores": medians})
        self._writer.flush()

    def count(self, neuron: str, layer: str, status: str, score: float | None) -> bool:
        """Count a finished neuron and its score; tell whether it was not counted before."""
        if neuron in self._statuses:
            return False
        self._statuses[neuron] = status
        if score is not None:
            self._scores[layer].append(score)
            self._grown.add(layer)
        return True

    @property
    def has_room(self) -> bool:
        """Whether :meth:`draw` has still use for a neuron."""
        return self._grids_left > 0 or self._projector.room > 0

    def draw(self, row: NeuronRow, step: int) -> None:
        """Show the images of a neuron, if it is one of the first.

        Args:
            row: The neuron, which was not drawn before in this session.
            step: Ascent steps of this session.
        """
        if not (self.has_room and row.num_images):
            return
        images = read_images(row)
        if self._grids_left > 0 and row.neuron not in self._drawn:
            self._drawn.add(row.neuron)
            grid, step = cluster_grid(row, images), self._offset + step
            self._writer.add_image(f"{_GRID}{row.neuron}", grid, step, dataformats="HWC")
        self._projector.add(row, images, self._centre)

    @property
    def due(self) -> bool:
        """Whether it is time for :meth:`refresh`."""
        return time.perf_counter() - self._written >= self._options.every

    def refresh(self, progress: Progress, step: int) -> None:
        """Write the curves, and the histograms of the layers that have more scores than before.

        Args:
            progress: How far the run is.
            step: Ascent steps of this session; nothing is written twice for one step.
        """
        self._write(progress, self._offset + step)
        if time.perf_counter() - self._summarised >= self._options.summary_every:
            self._summarise(progress, self._offset + step)
        self._writer.flush()

    def close(self, progress: Progress, step: int, *, complete: bool) -> None:
        """Write the last values of the session.

        Args:
            progress: How far the run is.
            step: Ascent steps of this session.
            complete: Whether every neuron of the run is finished.
        """
        self._write(progress, self._offset + step)
        self._summarise(progress, self._offset + step)
        if self._options.hparams and complete and SESSION_END_INFO_TAG not in self._tags:
            _, _, end = hparams({}, {})  # type: ignore[no-untyped-call]
            self._events.add_summary(end)
        self._writer.close()

    @property
    def _grids_left(self) -> int:
        return self._options.max_grids - len(self._drawn) if self._options.images else 0

    def _write(self, progress: Progress, step: int) -> None:
        if step <= self._last_step:
            return
        if self._options.scalars:
            steps = progress.image_steps - self._last.image_steps
            seconds = progress.seconds - self._last.seconds
            statuses = Counter(self._statuses.values())
            values: dict[str, float] = {
                "neurons/finished": len(self._statuses),
                "neurons/dead": statuses["dead"],
                "neurons/failed": statuses["failed"],
                "images/finished": progress.images,
                "pool/occupancy": progress.occupancy,
                "pool/image_steps_per_second": steps / max(seconds, 1e-9),
            }
            if progress.mean_activation is not None:
                values["pool/mean_activation"] = progress.mean_activation
            for layer in sorted(self._grown):
                values[f"{self._score}_median/{layer}"] = float(np.median(self._scores[layer]))
            self._add_scalars(values, step)
        # A histogram takes as long as there are scores; one a neuron would be a square.
        for layer in sorted(self._grown) if self._options.histograms else []:
            self._writer.add_histogram(
                f"{self._score}/{layer}", np.array(self._scores[layer]), step, bins=_BINS
            )
        self._grown.clear()
        self._last, self._last_step = progress, step
        self._written = time.perf_counter()

    def _summarise(self, progress: Progress, step: int) -> None:
        """Write the projector's files, and what runs are compared by."""
        self._projector.write()
        scores = [score for layer in self._scores.values() for score in layer]
        if self._options.hparams:
            # The table of runs shows the first metrics by their names.
            values: dict[str, float] = {"all/neurons": len(self._statuses)}
            values["run/image_steps_per_second"] = progress.image_steps / max(
                progress.seconds, 1e-9
            )
            if scores:
                values[f"all/mean_{self._score}"] = float(np.mean(scores))
                values[f"all/median_{self._score}"] = float(np.median(scores))
            self._add_scalars(values, step)
        self._summarised = time.perf_counter()

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)


@functools.cache
def _leave_errors_to_caller() -> None:
    """Keep errors of TensorBoard's writing thread, which are raised here too, off the screen."""
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            previous(args)

    threading.excepthook = hook
