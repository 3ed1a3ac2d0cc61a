"""``polylight.visualize``: images that drive neurons, and nothing else."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn

from polylight.api.arguments import as_device, as_expressions, check_settings
from polylight.api.engine import image_settings, make_trainer
from polylight.ascent.allocator import keep_freed_memory
from polylight.ascent.buffer import FinishedNeuron
from polylight.data import NeuronDataModule
from polylight.isolation import isolated, raising_interrupts
from polylight.module import PolysemanticityModule
from polylight.networks import Model
from polylight.networks.load import as_model
from polylight.neurons import layers_of, parse_neurons


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronImages:
    """What drives a neuron.

    Attributes:
        images: uint8 [N, H, W, 3], in the order in which they were made; of a network that sees
            another number of channels, as colours (:func:`polylight.networks.images.picture`).
        activations: float32 [N], in the layer's own units; NaN of an image that became non-finite.
        baseline: Mean activation of the random images that the ascents started from.
    """

    images: npt.NDArray[np.uint8]
    activations: npt.NDArray[np.float32]
    baseline: float

    @property
    def pictures(self) -> list[Image.Image]:
        """The images as those of PIL."""
        return [Image.fromarray(image) for image in self.images]


class _Collect(Callback):
    """Keeps the neurons that are finished."""

    def __init__(self) -> None:
        self.finished: dict[str, FinishedNeuron] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take those of this turn."""
        self.finished |= {str(f.neuron): f for f in outputs["finished"]}


def visualize(
    net: str | nn.Module | Model,
    neurons: str | Sequence[str],
    *,
    images: int = 16,
    device: str | torch.device | None = None,
    progress: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_size: int | None = None,
    example: Tensor | Sequence[Any] | None = None,
    **settings: Any,
) -> dict[str, NeuronImages]:
    """Make images that drive neurons: those that :func:`polylight.score` makes, without a score.

    Args:
        net: As for :func:`polylight.score`, like the others; it is left as it is.
        neurons: Likewise.
        images: Images of a neuron.
        device: Likewise.
        progress: Likewise.
        mean: Likewise.
        std: Likewise.
        input_size: Likewise.
        example: Likewise.
        settings: Likewise.

    Returns:
        By the name of each neuron its images, in the order asked for.

    Raises:
        InputError: If something that was given cannot be used.
        KeyboardInterrupt: After Ctrl+C.
    """
    checked = check_settings("visualize", image_settings(images, settings))
    expressions, where = as_expressions(neurons), as_device(device, net)
    with isolated(), tempfile.TemporaryDirectory(prefix="polylight-") as folder:
        how: dict[str, Any] = {
            "mean": mean,
            "std": std,
            "input_size": input_size,
            "example": example,
        }
        subject = as_model(net, **how)
        module = PolysemanticityModule(subject, _nothing(), **checked)
        data = NeuronDataModule(expressions)
        layers = module.cut(layers_of(expressions))
        data.select(lambda _: layers)
        module.manifest(where)
        collect = _Collect()
        trainer = make_trainer(where, Path(folder), progress=progress, callbacks=[collect])
        keep_freed_memory()
        with raising_interrupts():
            trainer.fit(module, datamodule=data)
    asked = map(str, parse_neurons(expressions, layers))
    return {name: _images(collect.finished[name]) for name in asked}


def _images(finished: FinishedNeuron) -> NeuronImages:
    return NeuronImages(
        finished.pictures.permute(0, 2, 3, 1).cpu().numpy(),
        finished.activations.cpu().numpy(),
        finished.baseline,
    )


def _nothing() -> Model:
    """An embedder that sees the mean colour: nobody looks at what it returns."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    # Its name is not shown; weights of ones are the same in every process, and so is the hash.
    return as_model(net.requires_grad_(False), name="no embedder", mean=0.0, std=1.0, input_size=8)
