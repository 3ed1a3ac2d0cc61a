"""One step of the pool as a CUDA graph: a single launch instead of hundreds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polylight.errors import InputError

# Libraries choose their algorithms and allocate workspaces in the first calls.
_WARMUPS = 3


class StepGraph:
    """A function of no arguments that works on fixed tensors, captured once and replayed.

    Args:
        step: What to capture. It reads and writes the same tensors at each call, does not wait
            for the device, and takes no decision that depends on values on it. What it returns
            lies in the same place after each replay.
        state: The tensors that it changes; they are as before when the capture is done.

    Raises:
        InputError: If the step cannot be captured.
    """

    def __init__(self, step: Callable[[], Tensor], state: Sequence[Tensor]) -> None:
        saved = [tensor.detach().clone() for tensor in state]
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may be scoring on the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._result = step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                "the subject cannot be captured in a CUDA graph: its forward waits for the device "
                f"or depends on values on it ({error}). Set --model.cuda_graph false."
            ) from error
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, saved, strict=True):
                    tensor.copy_(value)

    def __call__(self) -> Tensor:
        """Take the step and return its result."""
        self._graph.replay()
        return self._result
