"""A caller's process stays as it is: random states, torch's global settings, signals."""

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from polylight.noise import without_noise


@contextmanager
def isolated() -> Iterator[None]:
    """Run a block in the settings that polylight expects, and bring the caller's back after it.

    These are torch's default type and device, whether gradients are recorded, autocast, the
    current GPU, deterministic algorithms, cuDNN's flags; the random states of torch, NumPy and
    Python; and what Ctrl+C does. Lightning's messages stay off the terminal.
    """
    with ExitStack() as stack:
        stack.callback(_restore, _state())
        stack.enter_context(without_noise())
        # The outermost first: what made a tensor under inference could not climb.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            # Not without need: it looks at every call of torch.
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Let Ctrl+C in a block be a ``KeyboardInterrupt``, which Lightning makes a ``SystemExit``."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


def _state() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_gpu else None,
        "gpu": torch.cuda.current_device() if on_gpu else None,
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        # Only the main thread may set handlers, and so only there are they changed.
        "signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        if threading.current_thread() is threading.main_thread()
        else {},
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state_all(state["cuda"])
        torch.cuda.set_device(state["gpu"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    torch.set_default_dtype(state["dtype"])
    enabled, warn_only = state["deterministic"]
    if enabled != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = state["cudnn"]
    for number, handler in state["signals"].items():
        # None is a handler that was not installed from Python.
        if handler is not None and handler is not signal.getsignal(number):
            signal.signal(number, handler)
