"""K-means and the number of clusters, for many neurons at once."""

from polylight.clustering.bic import bic
from polylight.clustering.kmeans import Backend, Clusters, cluster, two_means
from polylight.clustering.splits import Selection
from polylight.clustering.unimodal import one_mode_p_value

__all__ = ["Backend", "Clusters", "Selection", "bic", "cluster", "one_mode_p_value", "two_means"]
