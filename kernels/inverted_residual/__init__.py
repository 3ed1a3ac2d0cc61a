"""Inverted residual blocks (Sandler et al. 2018, "MobileNetV2"), frozen, as one operation.

One function, :func:`polylight.kernels.inverted_residuals`. Its plain path are three convolutions a
block (``reference``). On a CPU in float32 one loop runs all of it (``cpu``): ``layout`` orders the
weights as it reads them, ``loops`` goes through the rows of an image, and ``tiles`` writes the
instructions of the innermost sums.
"""
