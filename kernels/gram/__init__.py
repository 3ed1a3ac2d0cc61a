"""Centred Gram matrices: inner products of the embeddings of each neuron's images."""
