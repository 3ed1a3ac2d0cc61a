"""TensorBoard while a run goes."""

from polylight.callbacks.tensorboard.callback import TensorBoardMonitor

__all__ = ["TensorBoardMonitor"]
