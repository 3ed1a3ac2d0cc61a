"""The settings of ``fit`` and ``validate`` by name, from the sources that define them."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from polylight.commandline.messages import unknown_option
from polylight.commandline.signatures import REQUIRED, Parameter, Signature, read_signature
from polylight.errors import InputError

CONFIG = Parameter("config", "FILE", None, "Settings as YAML; options win over it.")
FIT_OPTIONS = (
    Parameter("run_dir", "DIR", REQUIRED, "Directory of the run; made if need be."),
    CONFIG,
    Parameter("seed_everything", "int", 0, "Seed of the run."),
    Parameter("report", "bool", False, "Whether to write the run's report once it is finished."),
)
"""Options of ``fit`` that are of no class."""
_CLASSES = {
    "data": ("polylight.data", "NeuronDataModule"),
    "model": ("polylight.module", "PolysemanticityModule"),
    "tensorboard": ("polylight.callbacks.tensorboard.options", "Options"),
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
}
_SHORT = (
    "run_dir",
    "config",
    "data.neurons",
    "data.shard",
    "data.photos",
    "model.subject",
    "model.embedder",
    "model.subject_weights",
    "model.embedder_weights",
    "model.preset",
    "model.image_size",
    "model.min_images",
    "model.max_images",
    "seed_everything",
    "report",
    "trainer.accelerator",
)
"""What the first screen of the help shows."""
_FIT_HELP = """\
usage: polylight fit --run_dir DIR [--config FILE] [--SETTING VALUE] …

Score how polysemantic neurons are.

{settings}

examples:
  polylight fit --run_dir runs/a --data.neurons blocks.4:0-3 classifier:281
  polylight fit --run_dir runs/b --config configs/quickstart.yaml

Every setting, and those of Lightning's trainer: polylight fit --help-all"""
_PLAINER = {"trainer.accelerator": "auto, cpu, gpu or mps."}
"""What Lightning's own docstring says at length."""
_HANDLED = ("config", "print_config", "help")
"""Options that the parser itself acts on."""


def fit_settings() -> dict[str, Parameter]:
    """Every setting of ``fit`` by its dotted name."""
    groups = {
        f"{group}.{parameter.name}": parameter
        for group, place in _CLASSES.items()
        for parameter in read_signature(*place).parameters
    }
    # The module's seed is the run's, and the trainer's directory is the run's.
    linked = ("model.seed", "trainer.default_root_dir")
    own = {parameter.name: parameter for parameter in FIT_OPTIONS}
    return {**own, **{name: p for name, p in groups.items() if name not in linked}}


def fit_help(width: int = 80) -> str:
    """The settings of ``fit`` that matter, on one screen.

    Args:
        width: Width of the terminal, in characters.

    Returns:
        The text, without a newline at its end.
    """
    settings = fit_settings()
    shown = {name: settings[name] for name in _SHORT}
    shown |= {name: replace(shown[name], help=text) for name, text in _PLAINER.items()}
    return _FIT_HELP.format(settings=_table(shown, width))


def function_help(command: str, signature: Signature, width: int = 80) -> str:
    """All that a function takes by name, for one whose own parser takes long to load.

    Args:
        command: The command that calls it.
        signature: Of the function.
        width: Width of the terminal, in characters.

    Returns:
        The text, without a newline at its end.
    """
    settings = {p.name: p for p in (*signature.parameters, CONFIG)}
    said = textwrap.fill(f"{signature.summary} {signature.details}".strip(), width)
    return (
        f"usage: polylight {command} [--SETTING VALUE] …\n\n{said}\n\n"
        f"{_table(settings, width)}\n\n"
        f"Also what is inside these settings: polylight {command} --help-all"
    )


def check_names(command: str, args: Sequence[str], names: Collection[str]) -> None:
    """Refuse an option that names no setting, before anything large is loaded.

    Args:
        command: Name of the command.
        args: Its arguments.
        names: Its settings. What is inside one, such as ``trainer.logger.init_args.name``, is
            for the parser to refuse.

    Raises:
        InputError: At the first such option.
    """
    known = {*names, *_HANDLED}
    groups = {name.partition(".")[0] for name in known}
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").removesuffix("+")
        inside = [".".join(name.split(".")[:i]) for i in (1, 2)]
        if arg.startswith("--") and name not in groups and known.isdisjoint([name, *inside]):
            raise InputError(unknown_option(command, arg, names))


def _table(settings: Mapping[str, Parameter], width: int) -> str:
    """Lay out settings, each with the first sentence that its docstring has for it."""
    # The longest that leaves room for words on a narrow terminal.
    column = max(len(name) for name in settings) + 6
    lines: list[str] = []
    for name, parameter in settings.items():
        option = f"  --{name}"
        sentence = parameter.help.partition(". ")[0].removesuffix(".")
        default = parameter.default
        if default not in (REQUIRED, None):
            sentence += f" (default: {default})"
        text = textwrap.wrap(sentence, max(width - column, 20)) or [""]
        lines.append(f"{option:<{column}}{text[0]}".rstrip())
        lines += [" " * column + more for more in text[1:]]
    return "\n".join(lines)
