"""The arguments of ``fit``, through Lightning's own parser to its three parts."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from polylight.callbacks.progress import RunProgress
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.commandline.messages import one_line
from polylight.commandline.settings import FIT_OPTIONS, fit_settings
from polylight.commandline.spelling import (
    collect_lists,
    expand_home,
    expand_options,
    files_first,
    join_signed,
)
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.session import TRAINER_DEFAULTS

_LARGEST_SEED = 2**32 - 1
_SHARDS = "start a process for each device, with --data.shard i/n and a device of its own"
_STOP = "stop a run early by --trainer.max_steps or --trainer.max_time"
_NO_BATCHES = "an image's gradient is its own, so there is nothing to add up or to clip"
_NO_VALIDATION = "a run has no validation, test or prediction"
_NO_EPOCHS = "a run is over when every neuron is scored"
_MEANINGLESS = {
    "strategy": _SHARDS,
    "num_nodes": _SHARDS,
    "sync_batchnorm": _SHARDS,
    "use_distributed_sampler": _SHARDS,
    "accumulate_grad_batches": _NO_BATCHES,
    "gradient_clip_val": _NO_BATCHES,
    "gradient_clip_algorithm": _NO_BATCHES,
    "fast_dev_run": _STOP,
    "limit_train_batches": _STOP,
    "overfit_batches": _STOP,
    "max_epochs": _NO_EPOCHS,
    "min_epochs": _NO_EPOCHS,
    "min_steps": _NO_EPOCHS,
    "reload_dataloaders_every_n_epochs": _NO_EPOCHS,
    "limit_val_batches": _NO_VALIDATION,
    "limit_test_batches": _NO_VALIDATION,
    "limit_predict_batches": _NO_VALIDATION,
    "val_check_interval": _NO_VALIDATION,
    "check_val_every_n_epoch": _NO_VALIDATION,
    "num_sanity_val_steps": _NO_VALIDATION,
    "enable_checkpointing": "the run directory is the checkpoint; the same command continues a run",
    "plugins": "precision is set by --model.precision, and a run is one process",
    "barebones": "it would leave out what writes the run",
}
"""Flags of the trainer that would change nothing here or break a run, and what to do instead."""


_TRAINING = {
    "BackboneFinetuning",
    "BaseFinetuning",
    "BatchSizeFinder",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelPruning",
    "StochasticWeightAveraging",
    "WeightAveraging",
}
"""Lightning's callbacks for the training of a network, by name."""


@dataclass(frozen=True)
class ParsedFit:
    """What the arguments of ``fit`` come to."""

    module: PolysemanticityModule
    data: NeuronDataModule
    trainer: Trainer
    run_dir: Path
    report: bool
    """Whether a report is to be written once the run is finished."""
    tensorboard: bool
    """Whether TensorBoard is to show the run."""
    config: str
    """Every setting as YAML, from which the same run can be started."""


def parse_fit(args: Sequence[str]) -> ParsedFit:
    """Build the parts of a run from the arguments of ``fit``.

    Args:
        args: What follows ``polylight fit``.

    Returns:
        The parts; nothing is written yet.

    Raises:
        InputError: If an argument, or a setting in a file, cannot be used.
        SystemExit: Of status 0, after the help or the settings that were asked for.
    """
    # A process is a run, or a shard, of its own, whatever number its launcher gave it; of others
    # than 0 Lightning takes away TensorBoard.
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    cli = _RunCLI(
        PolysemanticityModule,
        NeuronDataModule,
        args=list(args),
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults=TRAINER_DEFAULTS,
        parser_kwargs={
            "prog": "polylight fit",
            "description": "Score how polysemantic neurons are.",
            "exit_on_error": False,
            "allow_abbrev": False,
        },
    )
    config = cli.parser.dump(cli.config, skip_none=False)
    return ParsedFit(
        module=cli.model,
        data=cli.datamodule,
        trainer=cli.trainer,
        run_dir=Path(cli.config.run_dir),
        report=cli.config.report,
        tensorboard=cli.config.trainer.logger is not False,
        config=config,
    )


class _SlurmTask(SLURMEnvironment):
    """One task of a SLURM job: a run, or a shard, of its own, however many tasks there are."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accept any number of tasks; Lightning would want them to be the devices of one run."""


class _RunCLI(LightningCLI):
    """Parses what `fit` takes, and builds its parts."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's directory, and give its parts the run's seed."""
        run_dir, report = FIT_OPTIONS[0], FIT_OPTIONS[-1]
        parser.add_argument(f"--{run_dir.name}", type=str, required=True, help=run_dir.help)
        parser.add_argument(f"--{report.name}", type=bool, default=False, help=report.help)
        parser.add_lightning_class_args(TensorBoardMonitor, "tensorboard")
        parser.link_arguments("run_dir", "trainer.default_root_dir", compute_fn=expand_home)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what people write, refuse in one line, and check what Lightning does not."""
        settings = fit_settings()
        lists = [name for name, setting in settings.items() if setting.kind == "list[str]"]
        files = ["-c", "--config", *(f"--{group}" for group in parser.groups or ())]
        spelt = files_first(
            expand_options(join_signed(collect_lists(list(args or ()), lists))), files
        )
        try:
            # Those of files too.
            self.config = expand_home(parser.parse_args(spelt))
        except argparse.ArgumentError as error:
            raise InputError(one_line("fit", str(error), list(settings))) from error
        _check_seed(self.config.seed_everything)
        _check_trainer(self.config.trainer, parser.get_defaults().trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the trainer; TensorBoard under the run's directory unless another is given."""
        config = self.config_init
        if config.trainer.logger in (None, True):
            # The run's own monitor writes what TensorBoard shows.
            kwargs["logger"] = False
        if SLURMEnvironment.detect():
            kwargs["plugins"] = [_SlurmTask()]
        if config.trainer.enable_progress_bar is not False:
            kwargs["callbacks"] = [*(config.trainer.callbacks or []), RunProgress()]
        try:
            trainer: Any = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"the trainer cannot be built as its settings ask: {said}") from error
        for callback in trainer.callbacks:
            _check_callback(callback)
        return trainer


def _check_seed(seed: bool | int) -> None:
    """Refuse what is no seed of a run that can be run again."""
    if isinstance(seed, bool) or not 0 <= seed <= _LARGEST_SEED:
        raise InputError(
            f"--seed_everything has to be an integer from 0 to {_LARGEST_SEED}, not "
            f"{str(seed).lower()}."
        )


def _check_trainer(given: Namespace, default: Namespace) -> None:
    """Refuse what a run of one device, without epochs and validation, has no use for."""
    if not _is_one(given.devices):
        raise InputError(f"--trainer.devices {given.devices}: a run uses one device; {_SHARDS}.")
    if given.precision not in (None, 32, "32", "32-true"):
        raise InputError(
            f"--trainer.precision {given.precision} would round images and scores too; leave it at "
            "32-true and set --model.precision, which is the subject's."
        )
    for name, advice in _MEANINGLESS.items():
        if given[name] != default[name]:
            raise InputError(f"--trainer.{name} cannot be {given[name]} here: {advice}.")


def _check_callback(callback: Callback) -> None:
    """Refuse a callback that needs something to be trained."""
    names = [kind.__name__ for kind in type(callback).__mro__]
    for name in _TRAINING.intersection(names):
        raise InputError(
            f"--trainer.callbacks {names[0]}: {name} follows or changes a training, and a run "
            f"trains nothing; leave it out, and {_STOP}."
        )


def _is_one(devices: list[int] | str | int) -> bool:
    """Tell one device, of any or of a given number, from several."""
    if isinstance(devices, list):
        return len(devices) == 1
    return re.fullmatch(r"1|\d+,", str(devices)) is not None
