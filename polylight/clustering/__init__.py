"""K-means and the number of clusters, for many neurons at once."""

from polylight.clustering.bic import bic
from polylight.clustering.kmeans import Backend, Clusters, cluster

__all__ = ["Backend", "Clusters", "bic", "cluster"]
