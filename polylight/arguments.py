"""Command lines as people write them, in the spelling that the parser reads."""

from collections.abc import Callable, Sequence


def with_switches(
    command: Callable[[Sequence[str]], int | None], *switches: str
) -> Callable[[Sequence[str]], int | None]:
    """Let switches stand alone, and values begin with a minus.

    The parser wants ``--json true`` and ``--sort=-score``; so ``--json`` and ``--sort -score`` are
    respelt for it. What is written in the parser's own way stays as it is.

    Args:
        command: What takes the arguments in the parser's spelling.
        switches: Names of the boolean options, without ``--``.

    Returns:
        The same command, for either spelling.
    """
    alone = {f"--{name}" for name in switches}

    def respelt(args: Sequence[str]) -> int | None:
        return command(_respell(args, alone))

    return respelt


def _respell(args: Sequence[str], alone: set[str]) -> list[str]:
    """Join each option with the value that the parser would not take for one."""
    spelt: list[str] = []
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg in alone and following not in ("true", "false"):
            spelt.append(f"{arg}=true")
        elif _is_signed(arg) and spelt and _wants_value(spelt[-1]):
            spelt[-1] += f"={arg}"
        else:
            spelt.append(arg)
    return spelt


def _is_signed(arg: str) -> bool:
    """Tell a value with a minus from an option; the only short option is -h."""
    return len(arg) > 1 and arg[0] == "-" and arg[1] != "-" and arg != "-h"


def _wants_value(arg: str) -> bool:
    """Tell an option whose value is still to come."""
    return arg.startswith("--") and "=" not in arg
