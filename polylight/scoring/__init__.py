"""How polysemantic a neuron is, from the clusters of its images."""

from polylight.scoring.alternatives import (
    mean_distance_score,
    score_table,
    vendi_score,
    weighted_ms_score,
)
from polylight.scoring.functional import (
    cluster_similarity,
    effective_features,
    leinster_cobbold_score,
    paper_score,
    rao_score,
)
from polylight.scoring.halves import semanticlens_score, silhouette_score
from polylight.scoring.metrics import EffectiveFeatures, PaperScore, PolysemanticityScore
from polylight.scoring.score import (
    Partition,
    Score,
    multimodality,
    partition_score,
    polysemanticity_score,
    separation_of,
    weighted_score,
)
from polylight.scoring.strength import relative_strength, strength_gate
from polylight.scoring.uncertainty import Uncertainty, coverage, score_uncertainty

__all__ = [
    "EffectiveFeatures",
    "PaperScore",
    "Partition",
    "PolysemanticityScore",
    "Score",
    "Uncertainty",
    "cluster_similarity",
    "coverage",
    "effective_features",
    "leinster_cobbold_score",
    "mean_distance_score",
    "multimodality",
    "paper_score",
    "partition_score",
    "polysemanticity_score",
    "rao_score",
    "relative_strength",
    "score_table",
    "score_uncertainty",
    "semanticlens_score",
    "separation_of",
    "silhouette_score",
    "strength_gate",
    "vendi_score",
    "weighted_ms_score",
    "weighted_score",
]
