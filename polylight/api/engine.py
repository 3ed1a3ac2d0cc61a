"""The engine of ``polylight fit`` for a caller in Python: its module, its trainer, its neurons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from polylight.callbacks.progress import RunProgress
from polylight.errors import InputError
from polylight.session import TRAINER_DEFAULTS


def make_trainer(
    device: torch.device, folder: Path, *, progress: bool, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """Build the trainer of a run in this process.

    Args:
        device: Where to work.
        folder: What Lightning takes for its own directory; it writes nothing there.
        progress: Whether a bar is shown in a notebook or on a terminal.
        callbacks: More of them.

    Returns:
        The trainer.
    """
    gpu: dict[str, Any] = {"accelerator": device.type}
    if device.type == "cuda":
        gpu |= {"devices": [device.index or 0]}
    return Trainer(
        **TRAINER_DEFAULTS | gpu,
        # A notebook on a cluster is no task of a job.
        plugins=[LightningEnvironment()],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=progress,
        callbacks=[*callbacks, *([RunProgress()] if progress else [])],
    )


def image_settings(images: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a number of images, which is the name of ``max_images`` in Python.

    Raises:
        InputError: If both are given.
    """
    if "max_images" in settings:
        raise InputError(
            "max_images is called images in Python, the most that a neuron gets; "
            f"write images={settings['max_images']}."
        )
    return {**settings, "max_images": images}
