"""``polylight.score``: the neurons of a network, scored as ``polylight fit`` scores them."""

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polylight.api.arguments import EMBEDDER, as_device, as_expressions, check_settings
from polylight.api.engine import image_settings, make_trainer
from polylight.api.runs import ScoredRun
from polylight.data import NeuronDataModule
from polylight.isolation import isolated, raising_interrupts
from polylight.module import PolysemanticityModule
from polylight.networks import Model
from polylight.networks.load import as_model
from polylight.session import open_session, score_neurons

_logger = logging.getLogger(__name__)


def score(
    net: str | nn.Module | Model,
    neurons: str | Sequence[str],
    *,
    embedder: str | nn.Module | Model = EMBEDDER,
    images: int = 16,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    name: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_size: int | None = None,
    example: Tensor | Sequence[Any] | None = None,
    **settings: Any,
) -> ScoredRun:
    """Score how polysemantic neurons are.

    It is the engine of ``polylight fit``: the same neurons of the same weights give the same rows,
    to the bit. A network in memory is copied and left as it is, and so are all random states and
    global settings of the process.

    Args:
        net: An ``nn.Module`` in any mode and on any device, or the name of a network as on the
            command line.
        neurons: Neuron expressions, such as ``layer4:0-15`` or ``["layer4:*", "fc:3"]``.
        embedder: The network that embeds the images, likewise.
        images: Images of a neuron, at the most.
        run_dir: Directory of the run; that of the same settings is continued. Without one the run
            is in a temporary directory that goes with what is returned
            (:meth:`ScoredRun.save` keeps it).
        device: Where to work; unless given the GPU that the network is on, else the first one, else
            the CPU.
        progress: Whether a notebook or a terminal shows a progress bar.
        name: What to call a network in memory; its class unless given.
        mean: Mean of each channel that a network in memory was trained with, of images in [0, 1];
            one number for all. Unless given it is found, or ImageNet's; the log says which
            (:func:`polylight.networks.live.model_from_module`).
        std: Standard deviation, likewise.
        input_size: Side of the images that it was trained with, in pixels, likewise.
        example: An input that it takes, [B, C, H, W], or all arguments of its forward.
        settings: Any others of ``--model.NAME`` on the command line, such as ``preset="lucid"`` or
            ``seed=1`` (:class:`polylight.module.PolysemanticityModule`).

    Returns:
        The scored neurons.

    Raises:
        InputError: If something that was given cannot be used; no directory is touched then.
        KeyboardInterrupt: After Ctrl+C. What was finished is on the disk: the same call with that
            directory as ``run_dir`` continues, :func:`polylight.open_run` shows it.
    """
    checked = check_settings("score", image_settings(images, settings))
    expressions = as_expressions(neurons)
    where = as_device(device, net)
    with isolated():
        how: dict[str, Any] = {
            "mean": mean,
            "std": std,
            "input_size": input_size,
            "example": example,
        }
        subject = as_model(net, name=name, **how)
        module = PolysemanticityModule(subject, as_model(embedder), **checked)
        data = NeuronDataModule(expressions)
        if run_dir is not None:
            folder = Path(run_dir).expanduser()
            _score(module, data, folder, where, progress=progress)
            return ScoredRun(folder)
        folder = Path(tempfile.mkdtemp(prefix="polylight-"))
        try:
            _score(module, data, folder, where, progress=progress)
        except KeyboardInterrupt:
            # What is finished stays as long as the process.
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return ScoredRun(folder, is_temporary=True)


def _score(
    module: PolysemanticityModule,
    data: NeuronDataModule,
    folder: Path,
    device: torch.device,
    *,
    progress: bool,
) -> None:
    """Score the neurons that are not finished in a directory."""
    trainer = make_trainer(device, folder, progress=progress)
    with open_session(module, data, folder, device) as session:
        session.write_file("config.yaml", _config(module, data, folder).encode())
        if not data.pending:
            return
        try:
            with raising_interrupts():
                score_neurons(trainer, module, data, session)
        except KeyboardInterrupt:
            _logger.warning(
                "stopped after %d of %d neurons; polylight.open_run(%r) shows them, and the same "
                "call with this run_dir continues",
                len(session.finished),
                len(data.neurons),
                str(folder),
            )
            raise


def _config(module: PolysemanticityModule, data: NeuronDataModule, folder: Path) -> str:
    """The settings as ``polylight fit`` writes them; of a network in memory its name."""
    values = {name: value for name, value in module.hparams.items() if name != "seed"}
    config = {
        "seed_everything": module.seed,
        "model": values,
        "data": {"neurons": data.expressions, "shard": "0/1", "photos": None},
        "run_dir": str(folder),
    }
    said = [
        f"# {role} is a network in memory, of weights {model.weights_hash}: "
        "give it to polylight.score() to continue this run.\n"
        for role, model in (("subject", module.subject_model), ("embedder", module.embedder_model))
        if model.source == "live"
    ]
    # JSON is YAML.
    return "".join(said) + json.dumps(config, indent=2) + "\n"
