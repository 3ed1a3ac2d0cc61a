"""What only a GPU can show of the engine; run with ``pytest -m gpu``."""

import pytest
import torch
from tiny_runs import ASCENT, engine, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NEURONS = ["act3:0-3", "conv1:2", "fc:7", "max(act3:1,conv1:4)"]
CUDA = {"device": "cuda", "lag": None}


def test_nothing_in_a_turn_waits_for_the_device():
    made = engine(NEURONS, precision="bfloat16", **CUDA)
    for _ in range(3):  # compiles, captures
        made.turn()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not made.done:
            made.turn()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.counters.neurons == len(made.neurons)


def test_a_captured_step_is_the_step():
    eager = run(NEURONS, precision="float32", cuda_graph=False, **CUDA)
    captured = run(NEURONS, precision="float32", cuda_graph=True, **CUDA)
    for name, neuron in eager.items():
        assert neuron.steps == captured[name].steps
        difference = (neuron.images.int() - captured[name].images.int()).abs()
        assert difference.max() <= 1, name


def test_the_device_finds_the_images_of_the_cpu():
    """An ascent amplifies rounding, so images differ; what they reach does not."""
    cpu = run(NEURONS)
    for precision, tolerance in (("float32", 0.02), ("tf32", 0.1), ("bfloat16", 0.1)):
        gpu = run(NEURONS, precision=precision, **CUDA)
        for name, neuron in cpu.items():
            ours, theirs = gpu[name].activations.median().item(), neuron.activations.median().item()
            assert ours == pytest.approx(theirs, rel=tolerance), (name, precision)
            assert gpu[name].steps <= ASCENT.max_steps * len(neuron.images)


def test_triton_and_plain_torch_agree():
    plain = run(NEURONS, precision="float32", kernels="torch", **CUDA)
    fast = run(NEURONS, precision="float32", kernels="triton", **CUDA)
    for name, neuron in plain.items():
        ours, theirs = fast[name].activations.median().item(), neuron.activations.median().item()
        assert ours == pytest.approx(theirs, rel=0.02), name
