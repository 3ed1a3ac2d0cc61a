"""Does weight decay, or the optimizer, change how polysemantic a network becomes?

Trains a small CNN on scikit-learn's digits four times and draws the scores of the same neurons
over the epochs:

    python docs/examples/training_curve.py --out training-curve.png
"""

import argparse
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from polylight import PolysemanticityMonitor

SIZE = 32
LAYERS = ("conv2", "conv3")
OPTIMIZERS: dict[str, Any] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "SGD, weight decay": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-3),
    "Adam": partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0),
    "Adam, weight decay": partial(torch.optim.AdamW, lr=3e-3, weight_decay=1.0),
}
COLORS = {"conv2": "#0072B2", "conv3": "#D55E00"}


class Digits(LightningModule):
    """Three convolutions and a classifier of ten digits."""

    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential()
        for name, layer in (
            ("conv1", nn.Conv2d(1, 16, 3, padding=1)),
            ("act1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(16, 32, 3, padding=1)),
            ("act2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("conv3", nn.Conv2d(32, 32, 3, padding=1)),
            ("act3", nn.ReLU()),
            ("pool3", nn.AdaptiveAvgPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc", nn.Linear(128, 10)),
        ):
            self.net.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, SIZE, SIZE] in [0, 1]."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the accuracy."""
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one that is asked for."""
        optimizer: torch.optim.Optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        return optimizer


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Digits for training and validation, enlarged from 8 to SIZE pixels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear")
    data = TensorDataset(images, torch.tensor(digits.target))
    train, held_out = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    return DataLoader(train, 64, shuffle=True), DataLoader(held_out, 512)


def train(optimizer: str, epochs: int, settings: Mapping[str, Any]) -> tuple[pa.Table, float]:
    """Train one network with a monitor.

    Args:
        optimizer: Which one, of OPTIMIZERS.
        epochs: How long.
        settings: What else the monitor is given.

    Returns:
        The monitor's history, and the accuracy on the validation set.
    """
    # One process a training: threads of several would wait for each other.
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    # The pixels are in [0, 1] as the network gets them: nothing is taken away, nothing divided.
    monitor = PolysemanticityMonitor(
        LAYERS, network="net", mean=0.0, std=1.0, input_size=SIZE, **settings
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[monitor],
    )
    trainer.fit(Digits(optimizer), *loaders())
    return monitor.history, float(trainer.callback_metrics["accuracy"])


def plot(runs: Mapping[str, tuple[pa.Table, float]], path: Path) -> None:
    """Draw the curve of every neuron, and the mean of every layer, a panel for each training."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, (name, (history, accuracy)) in zip(panels, runs.items(), strict=True):
        table = history.to_pandas()
        for layer, color in COLORS.items():
            of_layer = table[table["layer"] == layer]
            for _, curve in of_layer.groupby("neuron"):
                panel.plot(curve["epoch"], curve["score"], color=color, alpha=0.3, linewidth=0.8)
            mean = of_layer.groupby("epoch")["score"].mean()
            panel.plot(mean.index, mean, color=color, linewidth=2.2, label=layer)
        panel.set_title(f"{name}\naccuracy {accuracy:.2f}", fontsize=10)
        panel.set_xlabel("epochs")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("polysemanticity")
    panels[0].set_ylim(bottom=0)
    panels[-1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def main(
    out: Path,
    epochs: int = 12,
    every_n_epochs: int = 4,
    workers: int = 0,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    **settings: Any,
) -> dict[str, tuple[pa.Table, float]]:
    """Train all networks and draw their curves.

    Args:
        out: The picture, .png or .svg.
        epochs: Of each training.
        every_n_epochs: Epochs from one scoring to the next.
        workers: Processes; 0 for this one.
        optimizers: Which trainings, of OPTIMIZERS.
        settings: What else the monitors are given.

    Returns:
        By training, the monitor's history and the accuracy.
    """
    run = partial(train, epochs=epochs, settings={"every_n_epochs": every_n_epochs, **settings})
    if workers:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, fresh) as pool:
            runs = dict(zip(optimizers, pool.map(run, optimizers), strict=True))
    else:
        runs = {name: run(name) for name in optimizers}
    plot(runs, out)
    return runs


if __name__ == "__main__":
    logging.getLogger("lightning").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training-curve.png"))
    main(
        parser.parse_args().out,
        workers=os.cpu_count() or 1,
        neurons_per_layer=6,
        images=12,
        embedder="efficientnet_lite0",
    )
