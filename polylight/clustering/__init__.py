"""K-means and the number of clusters, for many neurons at once."""

from polylight.clustering.bic import bic
from polylight.clustering.gap import GapStatistic, gap_statistic
from polylight.clustering.kmeans import MOST_CLUSTERS, Backend, Clusters, cluster, two_means
from polylight.clustering.splits import Selection

__all__ = [
    "MOST_CLUSTERS",
    "Backend",
    "Clusters",
    "GapStatistic",
    "Selection",
    "bic",
    "cluster",
    "gap_statistic",
    "two_means",
]
