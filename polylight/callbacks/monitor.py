"""Polysemanticity while a network trains: a callback for anyone's trainer."""

import inspect
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from polylight.callbacks.writer import RunWriter
from polylight.data import NeuronDataModule
from polylight.errors import InputError, nearest
from polylight.isolation import isolated
from polylight.module import PolysemanticityModule
from polylight.networks import Model
from polylight.networks.live import model_from_module
from polylight.networks.load import as_model
from polylight.reference import make_reference
from polylight.run.schema import SCHEMA, NeuronRow
from polylight.run.session import RunSession

_logger = logging.getLogger(__name__)

# Of a row, what is kept of every scored epoch.
_KEPT = (
    "neuron",
    "layer",
    "status",
    "score",
    "score_low",
    "score_high",
    "separation",
    "k",
    "k_eff",
)
_HISTORY = pa.schema(
    [
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        *((name, SCHEMA.field(name).type) for name in _KEPT),
    ]
)
# Settings that are given in other ways.
_GIVEN = {"subject", "subject_weights", "embedder_weights", "max_images"}
_QUANTILES = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
# What these strategies leave on a device is no network that could be copied.
_SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")


class PolysemanticityMonitor(Callback):
    """Scores a fixed sample of neurons every few epochs, and changes nothing.

    At the end of a training epoch, after its validation, a frozen copy of the network is scored on
    the trainer's device, as ``polylight fit`` would. The training itself is the same to the bit as
    without the monitor: weights, optimizer, mode, hooks, gradients and random numbers.

    The trainer's loggers get, under ``polysemanticity/``, the ``mean``, ``median`` and quantiles
    ``q10`` to ``q90`` of the scores, ``several``, the share of neurons with K > 1, and ``dead``,
    the share without a score; mean and ``several`` of every layer under ``layer/``; and the curve
    of every neuron under ``neuron/``. TensorBoard gets a histogram too. Their step is the
    trainer's ``global_step``.

    In a distributed training the first process scores, and the others wait for it.

    Args:
        layers: Names of layers, of each of which ``neurons_per_layer`` neurons are sampled, or
            neuron expressions such as ``conv2:0-7``.
        every_n_epochs: Epochs from one scoring to the next, > 0.
        neurons_per_layer: Neurons of a layer that is given by name; all, where it has fewer.
        network: Name of the attribute that holds the network, such as ``model``, or
            ``model.backbone``; layers are named from there. None for the LightningModule itself,
            by its ``forward``.
        mean: Mean of each channel of the images that the network is trained on, as part of
            [0, 1]; one number for all. None for what the network says, else ImageNet's.
        std: Their standard deviation, likewise. 0 and 1 for images that are not normalised.
        input_size: Side of these images, in pixels; None for what can be found out.
        embedder: Network that embeds the images: a name, or one in memory.
        images: Images of a neuron. Scores of different numbers are not comparable.
        reference_images: Images that the reference frame of each scored epoch is made from, > 1.
        at_start: Whether the network is scored before its first epoch, too.
        run_dir: Directory that gets a run directory for every scored epoch, such as
            ``epoch-0005``, which ``polylight show`` and ``report`` read; None for none.
        seed: Of the sample and of the images.
        **settings: Further settings of :class:`polylight.module.PolysemanticityModule`.

    Raises:
        InputError: If an argument cannot be used. What the network decides, such as whether a
            layer exists, is said when the training begins, before its first batch.
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        every_n_epochs: int = 1,
        *,
        neurons_per_layer: int = 16,
        network: str | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        input_size: int | None = None,
        embedder: str | nn.Module | Model = "efficientnet_lite2",
        images: int = 16,
        reference_images: int = 32,
        at_start: bool = True,
        run_dir: str | Path | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("neurons_per_layer", neurons_per_layer),
        ):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} has to be an integer of at least 1, not {value!r}.")
        if not self.layers:
            raise InputError("no layers are given; name some, such as 'conv2', or neurons of them.")
        known = set(inspect.signature(PolysemanticityModule).parameters) - _GIVEN
        for name in settings:
            if name not in known:
                raise InputError(f"there is no setting '{name}'; {nearest(name, known)}.")
        self.every_n_epochs, self.neurons_per_layer = every_n_epochs, neurons_per_layer
        self.network, self.at_start, self.seed = network, at_start, seed
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.seconds = 0.0
        """Seconds that scoring has taken so far."""
        self._preprocessing: dict[str, Any] = {"mean": mean, "std": std, "input_size": input_size}
        self._embedder = embedder
        self._settings = {
            "max_images": images,
            "reference_images": reference_images,
            "seed": seed,
            # Threads of a data loader that pin memory meanwhile would break the capture of a graph.
            "cuda_graph": False,
            **settings,
        }
        self._neurons: list[str] = []
        self._records: list[dict[str, Any]] = []

    @property
    def history(self) -> pa.Table:
        """A row for each neuron and scored epoch.

        ``epoch`` counts the epochs that were trained, 0 before the first; ``step`` is the trainer's
        ``global_step``; the other columns are those of a run of the same names. ``to_pandas()``
        makes a data frame of it.
        """
        return pa.Table.from_pylist(self._records, schema=_HISTORY)

    @property
    def state_key(self) -> str:
        """What this monitor's history is kept under in a checkpoint."""
        return self._generate_state_key(layers=self.layers, network=self.network)

    def state_dict(self) -> dict[str, Any]:
        """The history, for the trainer's checkpoints."""
        return {"history": list(self._records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self._records = list(state_dict["history"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the neurons, and refuse what cannot be scored before the first batch."""
        if not trainer.is_global_zero:
            return
        strategy = type(trainer.strategy).__name__
        if strategy.startswith(_SHARDING):
            raise InputError(
                f"{strategy} spreads the weights over processes, and a network is scored whole. "
                "Train with strategy 'ddp', or score its checkpoints with polylight fit."
            )
        with isolated():
            self._embedder = as_model(self._embedder)
            module = self._module(pl_module)
            self._neurons = self._sample(module)
            NeuronDataModule(self._neurons).select(module.cut)
            module.build_views()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the network as it is before its first epoch."""
        if trainer.global_step == 0:
            self._records, self.seconds = [], 0.0
        if self.run_dir is not None and trainer.is_global_zero:
            _refuse_others(self.run_dir, trainer.current_epoch + bool(trainer.global_step))
        if self.at_start and trainer.global_step == 0:
            self._score(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the network after every ``every_n_epochs`` epochs."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0:
            self._score(trainer, pl_module, epoch)

    def _score(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Score the sample, keep the scores and log them."""
        if not trainer.is_global_zero:
            return
        began, device = time.perf_counter(), trainer.strategy.root_device
        try:
            with isolated():
                module, rows = self._rows(pl_module, device)
        # A training that has diverged, or fills its GPU, is not the monitor's to end.
        except (InputError, torch.OutOfMemoryError) as error:
            _logger.warning("epoch %d is not scored: %s", epoch, error)
            return
        step = trainer.global_step
        for row in rows:
            kept = {name: getattr(row, name) for name in _KEPT}
            self._records.append({"epoch": epoch, "step": step, **kept})
        _log(trainer, rows, step)
        if self.run_dir is not None:
            try:
                _write(module, rows, self.run_dir / _folder(epoch), device)
            except (InputError, OSError) as error:
                _logger.warning("epoch %d is not written: %s", epoch, error)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        _logger.info("epoch %d: %d neurons scored in %.1f s", epoch, len(rows), seconds)

    def _rows(
        self, pl_module: LightningModule, device: torch.device
    ) -> tuple[PolysemanticityModule, list[NeuronRow]]:
        """Score the sample as it is now, shallow neurons first."""
        module, data = self._module(pl_module), NeuronDataModule(self._neurons)
        data.select(module.cut)
        # Never kept: the next epoch's weights are others.
        module.prepare(data.neurons, device, make_reference)
        if module.engine is None or module.pool is None:
            raise RuntimeError("prepare() builds the engine")
        # What is fastest is measured once.
        self._settings["pool_size"] = module.pool.size
        optimizer: Any = module.configure_optimizers()
        finished = list(module.engine.run(data.neurons, module.steps_per_batch, optimizer))
        with module.watch("cluster"):
            by_name = {row.neuron: row for row in module.rows(finished)}
        return module, [by_name[str(neuron)] for neuron in data.neurons]

    def _module(self, pl_module: LightningModule) -> PolysemanticityModule:
        """What scores the network as it is now."""
        given, example = dict(self._preprocessing), pl_module.example_input_array
        if self.network is None and isinstance(example, torch.Tensor):
            given["example"] = example.detach().cpu()
        model = model_from_module(_find(pl_module, self.network), **given)
        return PolysemanticityModule(model, as_model(self._embedder), **self._settings)

    def _sample(self, module: PolysemanticityModule) -> list[str]:
        """Neuron expressions: those that are given, and a sample of each layer that is."""
        layers = [text for text in self.layers if not _is_expression(text)]
        shapes = module.cut(layers) if layers else {}
        found: list[str] = []
        for text in self.layers:
            if _is_expression(text):
                found.append(text)
                continue
            # A layer's sample does not depend on the other layers.
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(shapes[text].channels, generator=generator)
            sampled = order[: self.neurons_per_layer].sort().values
            found += [f"{text}:{channel}" for channel in sampled.tolist()]
        return found


def _is_expression(text: str) -> bool:
    """Tell a neuron expression from the name of a layer."""
    return ":" in text or "(" in text


def _folder(epoch: int) -> str:
    """Name the run directory of an epoch."""
    return f"epoch-{epoch:04d}"


def _refuse_others(run_dir: Path, epoch: int) -> None:
    """Refuse run directories of another training, from an epoch on."""
    others = sorted(p.name for p in run_dir.glob("epoch-*") if p.name >= _folder(epoch))
    if others:
        raise InputError(
            f"{run_dir} holds {others[0]} of another training. Choose another run_dir, or delete "
            "that."
        )


def _find(pl_module: LightningModule, network: str | None) -> nn.Module:
    """The network that is scored."""
    kind = type(pl_module).__name__
    children = [name for name, _ in pl_module.named_children()]
    if network is None:
        if type(pl_module).forward is LightningModule.forward:
            raise InputError(
                f"{kind} has no forward of its own. Say which of its networks is scored by "
                f"network=NAME; it has {', '.join(children) or 'none'}."
            )
        return pl_module
    try:
        return pl_module.get_submodule(network)
    except AttributeError as error:
        raise InputError(
            f"{kind} has no network '{network}'; {nearest(network, children)}."
        ) from error


def _log(trainer: Trainer, rows: Sequence[NeuronRow], step: int) -> None:
    """Give scores to the trainer's loggers."""
    values = _distribution(rows)
    for layer in dict.fromkeys(row.layer for row in rows):
        of_layer = _distribution([row for row in rows if row.layer == layer])
        for name in ("mean", "several"):
            if name in of_layer:
                values[f"layer/{layer}/{name}"] = of_layer[name]
    # Some loggers know no colon.
    values |= {
        f"neuron/{row.neuron.replace(':', '/')}": row.score for row in rows if row.score is not None
    }
    scores = np.array([row.score for row in rows if row.score is not None])
    for logger in trainer.loggers:
        logger.log_metrics({f"polysemanticity/{k}": v for k, v in values.items()}, step)
        if isinstance(logger, TensorBoardLogger) and scores.size:
            logger.experiment.add_histogram("polysemanticity/scores", scores, step)
        logger.save()


def _distribution(rows: Sequence[NeuronRow]) -> dict[str, float]:
    """How the scores of some neurons are distributed."""
    scored = [row for row in rows if row.score is not None and row.k is not None]
    found = {"dead": 1 - len(scored) / len(rows)}
    if scored:
        scores = np.array([row.score for row in scored], dtype=np.float64)
        found["mean"] = float(scores.mean())
        found |= {name: float(np.quantile(scores, q)) for name, q in _QUANTILES.items()}
        found["several"] = sum((row.k or 0) > 1 for row in scored) / len(scored)
    return found


def _write(
    module: PolysemanticityModule, rows: Sequence[NeuronRow], run_dir: Path, device: torch.device
) -> None:
    """Write the run directory of an epoch."""
    with RunSession(run_dir, module.manifest(device), [row.neuron for row in rows]) as session:
        writer = RunWriter(session, module.watch)
        writer.keep_reference(module)
        writer.receive(rows, 0)
        writer.record(module, "finished")
