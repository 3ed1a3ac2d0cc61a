"""TensorBoard while a run goes: scalars, score histograms, image grids."""

import time
from collections import defaultdict
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from polylight.pictures import decode_png
from polylight.rows import NeuronRow


class TensorBoardMonitor(Callback):
    """Writes to the run's TensorBoard logger, where it has one.

    Args:
        every: Seconds between scalars and between histograms, >= 0.
        max_grids: Neurons whose images are shown at the most; the first ones that finish.
    """

    def __init__(self, every: float = 2.0, max_grids: int = 64) -> None:
        self.every, self.max_grids = every, max_grids
        self._written = time.perf_counter()
        self._steps, self._seconds, self._grids = 0, 0.0, 0
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._grown: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what this turn gave."""
        logger = next((x for x in trainer.loggers if isinstance(x, TensorBoardLogger)), None)
        engine = getattr(pl_module, "engine", None)
        if logger is None or engine is None:
            return
        for row in outputs["rows"]:
            self._note(logger, row, trainer.global_step)
        now = time.perf_counter()
        if now - self._written < self.every and not engine.queue.drained:
            return
        self._written = now
        steps, seconds = engine.image_steps, engine.watch.seconds["ascent"]
        rate = (steps - self._steps) / max(seconds - self._seconds, 1e-9)
        self._steps, self._seconds = steps, seconds
        pool = engine.pool
        scalars = {
            "neurons/finished": engine.neurons,
            "images/finished": engine.images,
            "pool/occupancy": engine.occupancy,
            "pool/image_steps_per_second": rate,
        }
        if pool.running.any():
            scalars["pool/mean_activation"] = pool.smooth[pool.running].mean().item()
        logger.log_metrics(scalars, trainer.global_step)
        # A histogram takes as long as there are scores; one a neuron would be a square.
        for layer in sorted(self._grown):
            scores = torch.tensor(self._scores[layer])
            board = logger.experiment
            board.add_histogram(f"score/{layer}", scores, trainer.global_step)
            board.add_scalar(f"score_median/{layer}", scores.median(), trainer.global_step)
        self._grown.clear()

    def _note(self, logger: TensorBoardLogger, row: NeuronRow, step: int) -> None:
        """Keep a neuron's score for its layer's histogram, and show its images by cluster."""
        if row.score is not None:
            self._scores[row.layer].append(row.score)
            self._grown.add(row.layer)
        if row.image and self._grids < self.max_grids:
            self._grids += 1
            label, activation = row.label, row.activation
            order = sorted(
                range(row.num_images), key=lambda i: (label[i] < 0, label[i], -activation[i])
            )
            pictures = [torch.from_numpy(decode_png(row.image[i])).permute(2, 0, 1) for i in order]
            board = logger.experiment
            board.add_image(f"neuron/{row.neuron}", make_grid(pictures, nrow=8), step)
