"""polylight from Python: a network in memory, its neurons, and the pieces that a run is made of."""

from polylight.api.embeddings import cluster, embed, score_embeddings
from polylight.api.rescoring import rescore
from polylight.api.runs import ScoredCluster, ScoredNeuron, ScoredRun, open_run
from polylight.api.scoring import score
from polylight.api.visualization import visualize

__all__ = [
    "ScoredCluster",
    "ScoredNeuron",
    "ScoredRun",
    "cluster",
    "embed",
    "open_run",
    "rescore",
    "score",
    "score_embeddings",
    "visualize",
]
