"""How polysemantic a neuron is, from the clusters of its images."""

from polylight.scoring.functional import (
    Score,
    effective_features,
    paper_score,
    polysemanticity_score,
    rao_score,
)
from polylight.scoring.metrics import EffectiveFeatures, PaperScore, PolysemanticityScore
from polylight.scoring.strength import relative_strength, strength_gate

__all__ = [
    "EffectiveFeatures",
    "PaperScore",
    "PolysemanticityScore",
    "Score",
    "effective_features",
    "paper_score",
    "polysemanticity_score",
    "rao_score",
    "relative_strength",
    "strength_gate",
]
