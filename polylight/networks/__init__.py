"""Load a network with its own preprocessing, and list its layers."""

from polylight.networks.layers import Layer, layers, list_layers
from polylight.networks.load import Model, load_model

__all__ = ["Layer", "Model", "layers", "list_layers", "load_model"]
