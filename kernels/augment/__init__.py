"""Augmentation: images sampled through affine maps, normalised, laid out and cast."""
