"""The callback that keeps what a run finishes: rows, manifest, and the claim on the directory."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from polylight.data import NeuronDataModule
from polylight.module import PolysemanticityModule
from polylight.networks import Model
from polylight.run.manifest import Manifest, read_manifest, write_manifest
from polylight.run.resume import open_run
from polylight.run.schema import NeuronRow
from polylight.run.store import REFERENCE, RunStore

_SECONDS_BETWEEN_MANIFESTS = 5.0


class RunWriter(Callback):
    """Writes every neuron as soon as it is through: a killed run loses only those in flight.

    Args:
        run_dir: Directory of the run; that of an earlier session with the same settings is
            continued.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._store: RunStore | None = None
        self._base: Manifest | None = None
        self._counts = {"finished": 0, "failed": 0, "dead": 0}
        self._written = time.perf_counter()

    def claim(
        self, module: PolysemanticityModule, data: NeuronDataModule, device: torch.device
    ) -> None:
        """Select the neurons and take the directory; nothing is touched where that cannot be.

        Args:
            module: Knows models and settings.
            data: Its neurons are selected, and those that are finished already are left out.
            device: Where the run will work.

        Raises:
            InputError: If the neurons cannot be resolved, or the directory belongs to another run.
        """
        data.select(module)
        name = _device_name(device)
        there = read_manifest(self.run_dir, data.rank)
        # Measured anew, the pool might be another, and with it the last digits.
        how = there.device if there is not None and there.device.get("name") == name else {}
        module.earlier_pool_size = how.get("pool_size")
        fresh = Manifest(
            device={**how, "name": name, "threads": torch.get_num_threads()},
            subject=_identity(module.subject_model),
            embedder=_identity(module.embedder_model),
            reference_hash=module.recipe.key(module.subject_model, module.embedder_model),
            seed=module.seed,
            settings=module.settings(device),
            neurons={"total": len(data.neurons), "finished": 0, "failed": 0, "dead": 0},
        )
        self._base = open_run(self.run_dir, fresh, data.rank)
        self._store = RunStore(self.run_dir, data.rank)
        data.skip(self._store.finished())
        if not data.pending:
            # Nothing will run that could say so later.
            done = dataclasses.replace(self._base, status="finished")
            write_manifest(self.run_dir, done, data.rank)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the directory, where nobody has done so yet."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._store is None and isinstance(pl_module, PolysemanticityModule):
            self.claim(pl_module, data, trainer.strategy.root_device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the frame that embeddings are compared in: what is shown of a run needs it."""
        reference = getattr(pl_module, "reference", None)
        if reference is not None and not (self.run_dir / REFERENCE).is_file():
            reference.save(self.run_dir / REFERENCE)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the neurons of this turn."""
        if not isinstance(pl_module, PolysemanticityModule):
            return
        self._append(pl_module, outputs["rows"])
        if time.perf_counter() - self._written > _SECONDS_BETWEEN_MANIFESTS:
            with pl_module.watch("write"):
                self._write_manifest(pl_module, "running")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in the manifest how the run ended."""
        self._append_rest(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        through = data.queue is not None and data.queue.drained
        self._write_manifest(pl_module, "finished" if through else "interrupted")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say in the manifest that the run was cut off."""
        try:
            self._append_rest(pl_module)
        finally:
            self._write_manifest(pl_module, "interrupted")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the directory to others."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _append_rest(self, module: LightningModule) -> None:
        """Write the neurons that were through when the loop ended."""
        if isinstance(module, PolysemanticityModule):
            self._append(module, module.rows.take(wait=True))

    def _append(self, module: PolysemanticityModule, rows: list[NeuronRow]) -> None:
        if self._store is None or not rows:
            return
        with module.watch("write"):
            self._store.append(rows)
        self._counts["finished"] += len(rows)
        for status in ("failed", "dead"):
            self._counts[status] += sum(row.status == status for row in rows)

    def _write_manifest(self, module: LightningModule, status: Any) -> None:
        if self._base is None or not isinstance(module, PolysemanticityModule):
            return
        self._written = time.perf_counter()
        engine, seconds = module.engine, dict(module.watch.seconds)
        seconds["total"] = self._written - module.watch.started
        current = self._base.advance(
            neurons=self._counts,
            images=engine.images if engine else 0,
            image_steps=engine.image_steps if engine else 0,
            busy_steps=engine.busy_steps if engine else 0,
            slot_steps=engine.slot_steps if engine else 0,
            seconds=seconds,
        )
        current = dataclasses.replace(current, device={**current.device, **module.how()})
        rank = self._store.rank if self._store else 0
        write_manifest(self.run_dir, dataclasses.replace(current, status=status), rank)


def _identity(model: Model) -> dict[str, str]:
    return {"name": model.name, "source": model.source, "weights_hash": model.weights_hash}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
