"""Kernels run compiled where there is a CUDA device, and in Triton's interpreter elsewhere."""

import pytest
import torch


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["torch", "numba", "triton"])
def backend(request, device):
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "numba" and device.type != "cpu":
        pytest.skip("numba kernels are for CPUs")
    return request.param


@pytest.fixture
def poison(monkeypatch):
    """Memory that is asked for is full of NaN, so what a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
