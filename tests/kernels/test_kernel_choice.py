import importlib.machinery
import importlib.util

import pytest
import torch

from polylight.errors import InputError
from polylight.kernels import resolve_kernels

CPU, CUDA, OTHER = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def _not_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def triton(monkeypatch):
    """Say whether Triton is installed."""
    find_spec = importlib.util.find_spec

    def install(present):
        spec = importlib.machinery.ModuleSpec("triton", None) if present else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: spec if name == "triton" else find_spec(name)
        )

    return install


@pytest.mark.parametrize(
    ("kernels", "device", "expected"),
    [
        ("auto", CPU, "numba"),
        ("auto", CUDA, "triton"),
        ("auto", OTHER, "torch"),
        ("torch", CPU, "torch"),
        ("torch", CUDA, "torch"),
        ("torch", OTHER, "torch"),
        ("triton", CUDA, "triton"),
    ],
)
def test_each_device_has_its_kernels(kernels, device, expected, triton):
    triton(True)
    assert resolve_kernels(kernels, device) == expected


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_missing_triton_is_an_error_and_not_a_slower_run(kernels, triton):
    triton(False)
    with pytest.raises(InputError, match=r"pip install triton.*kernels to 'torch'"):
        resolve_kernels(kernels, CUDA)
    assert resolve_kernels("torch", CUDA) == "torch"
    assert resolve_kernels("auto", CPU) == "numba"


def test_triton_on_a_cpu_only_under_its_interpreter(triton, monkeypatch):
    triton(True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match=r"CUDA device, got cpu.*TRITON_INTERPRET=1"):
        resolve_kernels("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_kernels("triton", CPU) == "triton"
    assert resolve_kernels("auto", CPU) == "numba"
    triton(False)
    with pytest.raises(InputError, match="pip install triton"):
        resolve_kernels("triton", CPU)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="auto, torch, triton, got 'trition'; nearest: triton"):
        resolve_kernels("trition", CPU)
