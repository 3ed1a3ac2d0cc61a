"""The callback that keeps what a run finishes: rows and manifest."""

import time
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from polylight.module import PolysemanticityModule
from polylight.run.schema import NeuronRow
from polylight.run.session import RunSession, Status
from polylight.run.store import REFERENCE
from polylight.stopwatch import Stopwatch

_SECONDS_BETWEEN_MANIFESTS = 5.0


class RunWriter(Callback):
    """Writes every neuron as soon as it is scored: a killed run loses only active ones.

    Args:
        session: What it writes to.
        watch: Where the time goes.
    """

    def __init__(self, session: RunSession, watch: Stopwatch) -> None:
        self._session, self._watch = session, watch

    def receive(self, rows: Sequence[NeuronRow], step: int) -> None:
        """Write rows."""
        with self._watch("write"):
            self._session.append(rows)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the reference."""
        if isinstance(pl_module, PolysemanticityModule):
            self.keep_reference(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the manifest now and then."""
        if time.perf_counter() - self._session.recorded > _SECONDS_BETWEEN_MANIFESTS:
            with self._watch("write"):
                self.record(pl_module, "running")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in the manifest how the run ended."""
        self.record(pl_module, "finished" if self._session.is_complete else "interrupted")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say in the manifest that the run was cut off."""
        self.record(pl_module, "interrupted")

    def keep_reference(self, module: PolysemanticityModule) -> None:
        """Write the reference, which what is shown of a run needs."""
        path = self._session.run_dir / REFERENCE
        if module.reference is not None and not path.is_file():
            module.reference.save(path)

    def record(self, module: LightningModule, status: Status) -> None:
        """Write the manifest.

        Args:
            module: Whose engine has counted what was done.
            status: Of the run.
        """
        if not isinstance(module, PolysemanticityModule):
            return
        seconds = {**self._watch.seconds, "total": time.perf_counter() - self._watch.started}
        engine = module.engine
        if engine is None:
            self._session.record(status, seconds=seconds)
            return
        done, pool = engine.counters, engine.pool
        self._session.record(
            status,
            images=done.images,
            image_steps=done.image_steps,
            slot_steps=done.slot_steps,
            seconds=seconds,
            device={"pool_size": pool.size, "kernels": pool.backend},
        )
