"""Activation maximization: many images of many neurons climb at once."""
