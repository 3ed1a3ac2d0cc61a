"""Load a network with its own preprocessing, and list its layers."""

from polylight.models.layers import Layer, layers, list_layers
from polylight.models.load import Model, load_model

__all__ = ["Layer", "Model", "layers", "list_layers", "load_model"]
