"""The callback that shows a run in TensorBoard."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from polylight.ascent.engine import Engine
from polylight.callbacks.tensorboard.board import Board, Wishes
from polylight.callbacks.tensorboard.hparams import hyperparameters
from polylight.module import PolysemanticityModule
from polylight.run.schema import NeuronRow
from polylight.run.session import RunSession
from polylight.run.store import read_rows, read_run

_logger = logging.getLogger(__name__)


class TensorBoardMonitor(Callback):
    """Writes to the run's TensorBoard logger, where it has one.

    A run that is continued continues its curves: steps, which are ascent steps of the pool, are
    counted on from the last one that is there, and neurons are counted over all sessions. A
    TensorBoard that is open shows everything as it comes but the projector's points, which it
    reads once; start it anew for more.

    Args:
        every: Seconds between scalars and between histograms, >= 0.
        summary_every: Seconds between two writings of the projector's files, which takes longer,
            and of what came of the run, >= 0; both are written at the end in any case.
        max_grids: Neurons whose images are shown at the most, >= 0; the first ones that finish.
        max_projected: Images in the projector at the most, 0 to 100,000; those that are in a
            cluster, of the first neurons that finish.
        scalars: Whether counts, throughput, and the median score of each layer are written.
        histograms: Whether the scores of each layer are.
        images: Whether a neuron's images are, a row for each cluster, the strongest on top.
        projector: Whether images are placed by what the embedder makes of them.
        hparams: Whether the run's settings are written, and what came of it, so that the runs
            of a folder can be compared.
        layout: Whether there is a page that groups the scalars.

    Raises:
        InputError: If a number is out of its range.
    """

    def __init__(
        self,
        every: float = 2.0,
        summary_every: float = 300.0,
        max_grids: int = 64,
        max_projected: int = 2000,
        scalars: bool = True,
        histograms: bool = True,
        images: bool = True,
        projector: bool = True,
        hparams: bool = True,
        layout: bool = True,
    ) -> None:
        self.wishes = Wishes(
            every=every,
            summary_every=summary_every,
            max_grids=max_grids,
            max_projected=max_projected,
            scalars=scalars,
            histograms=histograms,
            images=images,
            projector=projector,
            hparams=hparams,
            layout=layout,
        )
        self._session: RunSession | None = None
        self._board: Board | None = None
        self._started = False

    def begin(self, session: RunSession) -> None:
        """Take up a run, before the trainer starts."""
        self._session = session

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what is there, and say what the run is."""
        logger = next((x for x in trainer.loggers if isinstance(x, TensorBoardLogger)), None)
        if logger is None or not isinstance(pl_module, PolysemanticityModule):
            return
        self._board, self._started = Board(logger.experiment, logger.log_dir, self.wishes), False
        session, data = self._session, trainer.datamodule  # type: ignore[attr-defined]
        settings = hyperparameters(pl_module, data.expressions, trainer.strategy.root_device)
        self._board.describe(settings, group=str(session.run_dir if session else logger.log_dir))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what earlier sessions have finished."""
        engine, board = _engine(pl_module), self._board
        if engine is None or board is None:
            return
        if engine.judge.reference is None:
            raise RuntimeError("images are shown in the frame of the reference")
        with engine.watch("monitor"):
            before = self._session.earlier if self._session else None
            # On the CPU, where rows are: a GPU would have to be waited for.
            board.start(engine.judge.reference.to("cpu").frame, before)
            if self._session:
                _catch_up(board, trainer, self._session.run_dir)
        self._started = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what this turn gave."""
        engine, board = _engine(pl_module), self._board
        if engine is None or board is None:
            return
        with engine.watch("monitor"):
            board.refresh(engine, trainer.global_step)

    def receive(self, rows: Sequence[NeuronRow], step: int) -> None:
        """Show rows."""
        board = self._board
        if board is None:
            return
        for row in rows:
            board.tally.note(row.neuron, row.layer, row.status, row.score)
            board.show(row, step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what there is."""
        try:
            self._end(trainer, pl_module)
        except OSError as error:
            # A full disk, say, which may be the exception itself; others have to save rows yet.
            _logger.warning("the last values of TensorBoard are not written: %s", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what came of the run."""
        self._end(trainer, pl_module)

    def _end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the last values, once, whichever way the session ends."""
        engine, board, self._board = _engine(module), self._board, None
        if engine is not None and board is not None and self._started:
            board.end(engine, trainer.global_step)


def _catch_up(board: Board, trainer: Trainer, run_dir: Path) -> None:
    """Take up the neurons of the run's store that the board has not seen."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    table = read_run(run_dir, ["neuron", "layer", "status", "score", "label"])
    # Processes that share a run have a board each.
    own = {str(n) for n in data.neurons} if data.num_shards > 1 else None
    fresh = [
        row
        for row in table.to_pylist()
        if row["neuron"] not in board.tally and (own is None or row["neuron"] in own)
    ]
    for row in fresh:
        board.tally.note(row["neuron"], row["layer"], row["status"], row["score"])
    wanted = board.wanted(
        (
            r["neuron"],
            len(r["label"]),
            sum(c >= 0 for c in r["label"]) if r["score"] is not None else 0,
        )
        for r in fresh
    )
    for neuron in read_rows(run_dir, wanted) if wanted else []:
        board.show(neuron, trainer.global_step)


def _engine(module: LightningModule) -> Engine | None:
    return getattr(module, "engine", None)
