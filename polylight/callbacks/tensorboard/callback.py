"""The callback that shows a run in TensorBoard: all that knows Lightning and the engine."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from polylight.ascent.precision import resolve_precision
from polylight.callbacks.tensorboard.options import Options
from polylight.callbacks.tensorboard.summaries import Progress, RunSummaries
from polylight.module import PolysemanticityModule
from polylight.neurons import layers_of
from polylight.run.manifest import Manifest
from polylight.run.reported import ReportedScore
from polylight.run.schema import NeuronRow
from polylight.run.store import part_paths, read_run, stream_rows
from polylight.stopwatch import Stopwatch

_logger = logging.getLogger(__name__)
# Settings of the ascent that a preset decides.
_ASCENT = ("max_steps", "learning_rate", "patience", "explore", "repulsion")


@dataclass(kw_only=True, eq=False)
class TensorBoardMonitor(Options, Callback):
    """Shows a run in TensorBoard.

    A run that is continued continues its curves: steps, which are ascent steps of the pool, are
    counted on from the last one that is there, and neurons are counted over all sessions. A
    TensorBoard that is open shows everything as it comes but the projector's points, which it
    reads once; start it anew for more.

    Whatever goes wrong here, such as a full disk, is a warning and ends what is shown of the
    session, never the run.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._folder: Path | None = None
        self._run_dir: Path | None = None
        self._earlier: Manifest | None = None
        self._watch = Stopwatch()
        self._summaries: RunSummaries | None = None
        self._caught_up = False
        self._score: ReportedScore = "score"

    def begin(self, folder: Path, run_dir: Path | None, earlier: Manifest | None) -> None:
        """Say what the session belongs to; without this nothing is shown.

        Args:
            folder: What TensorBoard is to read; processes that share a run have a folder each.
            run_dir: Directory of the run, with the neurons that are finished already; None
                without any.
            earlier: The process's record of the sessions before this one; None without any.
        """
        self._folder, self._run_dir, self._earlier = folder, run_dir, earlier
        self._caught_up = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what is there, and say what the run is."""
        module: Any = pl_module
        if self._folder is None:
            return
        self._watch = module.watch

        def centre(embeddings: Tensor) -> Tensor:
            # On the CPU, where rows are: a GPU would have to be waited for.
            centred: Tensor = module.reference.to("cpu").frame(embeddings)
            return centred

        with self._guard():
            progress = _progress(self._earlier, None)
            self._score = module.scorer.reported_score
            self._summaries = RunSummaries(self._folder, self, centre, progress, self._score)
            self._summaries.describe(_settings(trainer, module), str(self._run_dir or self._folder))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what earlier sessions have finished."""
        self._catch_up(trainer)
        self._caught_up = True

    def receive(self, rows: Sequence[NeuronRow], step: int) -> None:
        """Show neurons that are finished.

        Args:
            rows: The neurons.
            step: Ascent steps of this session.
        """
        if self._summaries is None:
            return
        with self._guard():
            for row in rows:
                score = getattr(row, self._score)
                if self._summaries.count(row.neuron, row.layer, row.status, score):
                    self._summaries.draw(row, step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what is due; all of it where every neuron is finished."""
        module: Any = pl_module
        if self._summaries is None or not (self._summaries.due or module.is_done):
            return
        with self._guard():
            self._summaries.refresh(_progress(self._earlier, module.engine), trainer.global_step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what there is."""
        self._close(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what came of the run."""
        self._close(trainer, pl_module)

    def _catch_up(self, trainer: Trainer) -> None:
        """Take up the neurons of the run's store that were not received."""
        if self._summaries is None or self._run_dir is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Processes that share a run show their own neurons.
        own = {str(neuron) for neuron in data.neurons} if data.num_shards > 1 else None
        names = set()
        with self._guard():
            table = read_run(self._run_dir, ["neuron", "layer", "status", self._score], own)
            for row in table.to_pylist():
                if self._summaries.count(*row.values()):
                    names.add(row["neuron"])
            for neuron in stream_rows(part_paths(self._run_dir), names) if names else []:
                if not self._summaries.has_room:
                    break
                self._summaries.draw(neuron, trainer.global_step)

    def _close(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the last values, once, whichever way the session ends."""
        summaries, self._summaries = self._summaries, None
        # Of a session that was stopped before, the last values are those of the one before it.
        if summaries is None or not self._caught_up:
            return
        scoring: Any = module
        with self._guard():
            progress = _progress(self._earlier, scoring.engine)
            summaries.close(progress, trainer.global_step, complete=scoring.is_done)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Count the time, and go on without TensorBoard where it fails."""
        try:
            with self._watch("monitor"):
                yield
        # Decoration: neurons are worth more than whatever this can be.
        except Exception as error:
            self._summaries = None
            _logger.warning(
                "TensorBoard shows no more of this session: %s: %s", type(error).__name__, error
            )


def _progress(earlier: Manifest | None, engine: Any) -> Progress:
    """Add what the engine, if there is one yet, has done to what earlier sessions did."""
    total = earlier or Manifest(device={}, seed=0, settings={})
    activation = None
    if engine is not None:
        total = total.advance(
            images=engine.counters.images,
            image_steps=engine.counters.image_steps,
            slot_steps=engine.counters.slot_steps,
            seconds={"ascent": engine.watch.seconds["ascent"]},
        )
        running = engine.pool.running
        activation = engine.pool.smooth[running].mean().item() if running.any() else None
    return Progress(
        images=total.images,
        image_steps=total.image_steps,
        seconds=total.seconds.get("ascent", 0.0),
        occupancy=total.occupancy,
        mean_activation=activation,
    )


def _settings(trainer: Trainer, module: PolysemanticityModule) -> dict[str, str | float]:
    """List a run's settings by the names that the command line gives them.

    Those that the preset decides are the preset's; those that are null are left out.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    values: dict[str, Any] = {n: v for n, v in module.hparams.items() if not n.startswith("_")}
    values |= {
        **{name: getattr(module.ascent, name) for name in _ASCENT},
        "image_size": module.parametrization.size,
        "parametrization": module.parametrization.kind,
        "min_images": module.rounds.min_images,
        "precision": resolve_precision(module.precision, trainer.strategy.root_device),
        "layers": ",".join(layers_of(data.expressions)),
    }
    # Of options of a constructor, TensorBoard takes the text.
    shown = {n: json.dumps(v) if isinstance(v, dict) else v for n, v in values.items()}
    return {name: value for name, value in shown.items() if value is not None}
