"""polylight: how polysemantic is every neuron of a vision network?"""

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polylight.api.embeddings import cluster, embed, score_embeddings
    from polylight.api.rescoring import rescore
    from polylight.api.runs import ScoredCluster, ScoredNeuron, ScoredRun, open_run
    from polylight.api.scoring import score
    from polylight.api.visualization import visualize
    from polylight.callbacks.monitor import PolysemanticityMonitor
    from polylight.checking import LayerCheck, NetworkCheck, check
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
    "LayerCheck",
    "NetworkCheck",
    "PaperScore",
    "PolysemanticityMonitor",
    "PolysemanticityScore",
    "ScoredCluster",
    "ScoredNeuron",
    "ScoredRun",
    "check",
    "cluster",
    "embed",
    "load_model",
    "open_run",
    "polysemanticity_score",
    "read_rows",
    "read_run",
    "rescore",
    "score",
    "score_embeddings",
    "visualize",
]

# Loaded when they are first asked for: to look at a run takes no torch, which takes seconds.
_HOMES = {
    "EffectiveFeatures": "polylight.scoring",
    "InputError": "polylight.errors",
    "LayerCheck": "polylight.checking",
    "NetworkCheck": "polylight.checking",
    "PaperScore": "polylight.scoring",
    "PolysemanticityMonitor": "polylight.callbacks.monitor",
    "PolysemanticityScore": "polylight.scoring",
    "ScoredCluster": "polylight.api.runs",
    "ScoredNeuron": "polylight.api.runs",
    "ScoredRun": "polylight.api.runs",
    "check": "polylight.checking",
    "cluster": "polylight.api.embeddings",
    "embed": "polylight.api.embeddings",
    "load_model": "polylight.networks",
    "open_run": "polylight.api.runs",
    "polysemanticity_score": "polylight.scoring",
    "read_rows": "polylight.run.store",
    "read_run": "polylight.run.store",
    "rescore": "polylight.api.rescoring",
    "score": "polylight.api.scoring",
    "score_embeddings": "polylight.api.embeddings",
    "visualize": "polylight.api.visualization",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        return getattr(import_module(_HOMES[name]), name)
    finally:
        # Lightning draws a random number when it is imported; a caller's own must not depend on it.
        random.setstate(state)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
