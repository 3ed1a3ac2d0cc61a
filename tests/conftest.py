"""Every test runs offline, and keeps references in a place of its own."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Small networks wait for threads more than they work; on a busy machine spinning costs tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Processes that share the cores.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))

if not torch.cuda.is_available():
    # Kernels then run in Triton's interpreter. It has to be asked for before anything imports
    # Triton, as torchvision does.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("POLYLIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
