"""TensorBoard while a run goes."""

from polylight.monitor.callback import TensorBoardMonitor

__all__ = ["TensorBoardMonitor"]
