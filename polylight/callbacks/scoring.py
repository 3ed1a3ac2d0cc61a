"""The callback that scores finished neurons and hands the rows on."""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from polylight.ascent.buffer import FinishedNeuron
from polylight.module import PolysemanticityModule
from polylight.run.schema import NeuronRow

_logger = logging.getLogger(__name__)


class RowSink(Protocol):
    """Takes the rows of a run as they are made."""

    def receive(self, rows: Sequence[NeuronRow], step: int) -> object:
        """Take rows.

        Args:
            rows: At least one, each handed on once.
            step: Ascent steps of this session so far.
        """


class ScoreNeurons(Callback):
    """Turns finished neurons into rows: at once, or in a thread while a GPU climbs on.

    Args:
        sinks: What takes the rows, in this order.
        threaded: Whether a thread scores; None for on a GPU only, where the CPU is free.
    """

    def __init__(self, sinks: Sequence[RowSink], *, threaded: bool | None = None) -> None:
        self._sinks, self._threaded = sinks, threaded
        self._thread: ThreadPoolExecutor | None = None
        self._scored: deque[Future[list[NeuronRow]]] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the thread where there is to be one."""
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if on_gpu if self._threaded is None else self._threaded:
            self._thread = ThreadPoolExecutor(1, "polylight-scores")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score the neurons that this turn has finished."""
        if not isinstance(pl_module, PolysemanticityModule):
            return
        with pl_module.watch("cluster"):
            if outputs["finished"]:
                self._submit(pl_module, outputs["finished"])
            rows = self._take(wait=False)
        self._hand_on(rows, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand on what is still being scored."""
        self._hand_on(self._take(wait=True), trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Hand on what was finished before the run was cut off."""
        try:
            self._hand_on(self._take(wait=True), trainer)
        except Exception as error:
            # It may be the exception itself: a full disk, say. The others have to end the run yet.
            _logger.warning("the last neurons are not written: %s", error)

    def _submit(self, module: PolysemanticityModule, finished: Sequence[FinishedNeuron]) -> None:
        if self._thread is not None:
            self._scored.append(self._thread.submit(module.rows, finished))
            return
        done: Future[list[NeuronRow]] = Future()
        done.set_result(module.rows(finished))
        self._scored.append(done)

    def _take(self, *, wait: bool) -> list[NeuronRow]:
        """Rows that nobody has had; what went wrong while they were made is raised here."""
        rows: list[NeuronRow] = []
        while self._scored and (wait or self._scored[0].done()):
            rows += self._scored.popleft().result()
        return rows

    def _hand_on(self, rows: Sequence[NeuronRow], trainer: Trainer) -> None:
        for sink in self._sinks if rows else ():
            sink.receive(rows, trainer.global_step)
