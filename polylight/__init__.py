"""polylight: how polysemantic is every neuron of a vision network?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polylight.callbacks.monitor import PolysemanticityMonitor
    from polylight.errors import InputError
    from polylight.networks import load_model
    from polylight.run.store import read_rows, read_run
    from polylight.scoring import (
        EffectiveFeatures,
        PaperScore,
        PolysemanticityScore,
        polysemanticity_score,
    )

__version__ = "0.1.0"

__all__ = [
    "EffectiveFeatures",
    "InputError",
    "PaperScore",
    "PolysemanticityMonitor",
    "PolysemanticityScore",
    "load_model",
    "polysemanticity_score",
    "read_rows",
    "read_run",
]

# Loaded when they are first asked for: to look at a run takes no torch, which takes seconds.
_HOMES = {
    "EffectiveFeatures": "polylight.scoring",
    "InputError": "polylight.errors",
    "PaperScore": "polylight.scoring",
    "PolysemanticityMonitor": "polylight.callbacks.monitor",
    "PolysemanticityScore": "polylight.scoring",
    "load_model": "polylight.networks",
    "polysemanticity_score": "polylight.scoring",
    "read_rows": "polylight.run.store",
    "read_run": "polylight.run.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
