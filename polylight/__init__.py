"""polylight: how polysemantic is every neuron of a vision network?"""

from polylight.errors import InputError
from polylight.models import load_model
from polylight.scoring import (
    EffectiveFeatures,
    PaperScore,
    PolysemanticityScore,
    polysemanticity_score,
)
from polylight.store import read_rows, read_run

__version__ = "0.1.0"

__all__ = [
    "EffectiveFeatures",
    "InputError",
    "PaperScore",
    "PolysemanticityScore",
    "load_model",
    "polysemanticity_score",
    "read_rows",
    "read_run",
]
