"""What a run shows in TensorBoard, and when."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from polylight.ascent.engine import Engine
from polylight.callbacks.tensorboard.earlier import read_earlier
from polylight.callbacks.tensorboard.grid import Picture, cluster_grid
from polylight.callbacks.tensorboard.hparams import Setting, end_summary, start_summaries
from polylight.callbacks.tensorboard.projector import Projector, clustered
from polylight.callbacks.tensorboard.tally import Tally
from polylight.errors import InputError
from polylight.run.manifest import Manifest
from polylight.run.png import decode_png, encode_png
from polylight.run.schema import NeuronRow

# The projector of TensorBoard loads no more points.
_MOST_PROJECTED = 100_000
_LAYOUT_TAG = "custom_scalars__config__"
_LAYOUT = {
    "Throughput": {
        "image-steps per second": ["Multiline", ["pool/image_steps_per_second"]],
        "occupancy of the pool": ["Multiline", ["pool/occupancy"]],
    },
    "Progress": {
        "neurons": ["Multiline", ["neurons/.*"]],
        "images": ["Multiline", ["images/finished"]],
    },
    "Scores": {"median by layer": ["Multiline", ["score_median/.*"]]},
}
_GRID = "neuron/"
_BINS = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of :class:`polylight.callbacks.tensorboard.TensorBoardMonitor`."""

    every: float
    summary_every: float
    max_grids: int
    max_projected: int
    scalars: bool
    histograms: bool
    images: bool
    projector: bool
    hparams: bool
    layout: bool

    def __post_init__(self) -> None:
        for name in ("every", "summary_every", "max_grids"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"tensorboard.{name} has to be at least 0, not {value}.")
        if not 0 <= self.max_projected <= _MOST_PROJECTED:
            raise InputError(
                f"tensorboard.max_projected has to be from 0 to {_MOST_PROJECTED}, the most that "
                f"TensorBoard loads, not {self.max_projected}."
            )


class Board:
    """A folder that TensorBoard reads, through one session of a run.

    Steps are counted on from the last one that is there.

    Args:
        writer: Of the folder.
        folder: The folder.
        wishes: What is wanted.
    """

    def __init__(self, writer: SummaryWriter, folder: str | Path, wishes: Wishes) -> None:
        self.wishes = wishes
        self.tally = Tally()
        self._writer, self._folder = writer, folder
        self._offset, self._tags = read_earlier(folder)
        self._shown = {t.removeprefix(_GRID) for t in self._tags if t.startswith(_GRID)}
        self._projector: Projector | None = None
        self._before: Manifest | None = None
        # The last that scalars were written at: the step, image steps, and seconds of ascent.
        self._step, self._steps, self._seconds = self._offset, 0, 0.0
        self._written = self._summed_up = time.perf_counter()

    def describe(self, settings: Mapping[str, Setting], group: str) -> None:
        """Write what does not change, where it is not there yet, so that a killed run has it.

        Args:
            settings: Of the run.
            group: Name of the run, common to processes that share it.
        """
        if self.wishes.hparams:
            self._add(start_summaries(settings, group))
        if self.wishes.layout and _LAYOUT_TAG not in self._tags:
            self._writer.add_custom_scalars(_LAYOUT)
        self._writer.flush()

    def start(self, frame: Callable[[Tensor], Tensor], before: Manifest | None) -> None:
        """Get ready for rows.

        Args:
            frame: Turns embeddings float32 [N, D] on the CPU into what the embedder compares.
            before: Where earlier sessions had got to; None without any record.
        """
        self._before = before
        if self.wishes.projector:
            self._projector = Projector(self._folder, frame, self.wishes.max_projected)
        self._written = self._summed_up = time.perf_counter()

    def wanted(self, neurons: Iterable[tuple[str, int, int]]) -> list[str]:
        """Choose, of neurons that :meth:`show` has not had, those that it would draw.

        Args:
            neurons: Of each, in the order in which they finished, the name, how many images it
                has, and how many of them are in a cluster.

        Returns:
            Their names.
        """
        room = self._projector.room if self._projector else 0
        grids = self._grids_left
        names = []
        for name, images, points in neurons:
            grid = grids > 0 and images > 0 and name not in self._shown
            grids -= grid
            if grid or min(room, points) > 0:
                names.append(name)
            room -= points
        return names

    def show(self, row: NeuronRow, step: int = 0) -> None:
        """Draw the images of a neuron, if it is one of the first.

        Args:
            row: The neuron, which was not shown before in this session.
            step: Ascent steps of this session.
        """
        if not self.wanted([(row.neuron, row.num_images, len(clustered(row)))]):
            return
        pictures = [decode_png(png) for png in row.image]
        if pictures and row.neuron not in self._shown and self._grids_left > 0:
            self._shown.add(row.neuron)
            grid = _image(f"{_GRID}{row.neuron}", cluster_grid(row, pictures))
            self._add([grid], self._offset + step)
        if self._projector and self._projector.room:
            self._projector.add(row, pictures)

    def refresh(self, engine: Engine, step: int) -> None:
        """Write what is due; all of it where every neuron is through.

        Args:
            engine: Of the run.
            step: Ascent steps of this session.
        """
        now, last = time.perf_counter(), engine.idle
        # A turn that took no step, as after the last one, has nothing to say.
        if (last or now - self._written >= self.wishes.every) and self._offset + step > self._step:
            self._write(engine, self._offset + step)
        if not last and now - self._summed_up >= self.wishes.summary_every:
            self._sum_up(engine, self._offset + step)

    def end(self, engine: Engine, step: int) -> None:
        """Write the last values of a session.

        Args:
            engine: Of the run.
            step: Ascent steps of this session.
        """
        step += self._offset
        if step > self._step:
            self._write(engine, step)
        self._sum_up(engine, step)
        if self.wishes.hparams and engine.idle:
            self._add([end_summary()])
        self._writer.flush()

    @property
    def _grids_left(self) -> int:
        return self.wishes.max_grids - len(self._shown) if self.wishes.images else 0

    def _write(self, engine: Engine, step: int) -> None:
        """Write scalars, and of the layers whose scores have become more the histograms."""
        tally, pool = self.tally, engine.pool
        steps, seconds = engine.counters.image_steps, engine.watch.seconds["ascent"]
        rate = (steps - self._steps) / max(seconds - self._seconds, 1e-9)
        self._step, self._steps, self._seconds = step, steps, seconds
        if self.wishes.scalars:
            values: dict[str, float] = {
                f"neurons/{kind}": number for kind, number in tally.neurons.items()
            }
            values["images/finished"] = engine.counters.images + (
                self._before.images if self._before else 0
            )
            made = engine.counters
            values["pool/occupancy"] = made.image_steps / max(made.slot_steps, 1)
            values["pool/image_steps_per_second"] = rate
            if pool.running.any():
                values["pool/mean_activation"] = pool.smooth[pool.running].mean().item()
            for layer in sorted(tally.grown):
                values[f"score_median/{layer}"] = float(np.median(tally.scores[layer]))
            self._add_scalars(values, step)
        # A histogram takes as long as there are scores; one a neuron would be a square.
        for layer in sorted(tally.grown) if self.wishes.histograms else []:
            scores = np.array(tally.scores[layer])
            self._writer.add_histogram(f"score/{layer}", scores, step, bins=_BINS)
        tally.grown.clear()
        self._writer.flush()
        self._written = time.perf_counter()

    def _sum_up(self, engine: Engine, step: int) -> None:
        """Write the projector's files, and the metrics of the run."""
        if self._projector:
            self._projector.write()
        if self.wishes.hparams:
            steps, seconds = engine.counters.image_steps, engine.watch.seconds["ascent"]
            if self._before is not None:
                steps += self._before.image_steps
                seconds += self._before.seconds.get("ascent", 0.0)
            values: dict[str, float] = {
                f"run/{kind}": number for kind, number in self.tally.neurons.items()
            }
            values["run/image_steps_per_second"] = steps / seconds if seconds else 0.0
            scores = [score for layer in self.tally.scores.values() for score in layer]
            if scores:
                values["run/median_score"] = float(np.median(scores))
                values["run/mean_score"] = float(np.mean(scores))
            self._add_scalars(values, step)
        self._summed_up = time.perf_counter()

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _add(self, summaries: list[Summary], step: int = 0) -> None:
        """Write summaries whose tags are not there yet."""
        file: Any = self._writer.file_writer
        for summary in summaries:
            if summary.value[0].tag not in self._tags:
                file.add_summary(summary, step)


def _image(tag: str, picture: Picture) -> Summary:
    """Wrap a picture uint8 [H, W, 3]; compressed in a fraction of the time of ``add_image``."""
    height, width, _ = picture.shape
    (png,) = encode_png(picture[None])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
