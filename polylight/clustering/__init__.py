"""K-means and the number of clusters, for many neurons at once."""

from polylight.clustering.bic import bic
from polylight.clustering.kmeans import Backend, Clusters, cluster, two_means
from polylight.clustering.splits import Selection
from polylight.clustering.unimodal import OneModeTest, one_mode_test

__all__ = [
    "Backend",
    "Clusters",
    "OneModeTest",
    "Selection",
    "bic",
    "cluster",
    "one_mode_test",
    "two_means",
]
