"""What only a GPU can show: real sizes, no wait for the host, capture in a graph."""

import pytest
import torch

from polylight.kernels import adam_step, philox_normal, philox_uniform, sample

pytestmark = pytest.mark.gpu
COUNT, SIZE = 256, 128


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("triton")
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield


def draw_maps():
    """Zoom 0.9 to 1.1, 5 degrees at the most, shifts of 8 pixels at the most."""
    zoom, angle = 0.9 + 0.2 * torch.rand(COUNT), 0.17 * torch.rand(COUNT) - 0.085
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    shift = 0.25 * torch.rand(2, COUNT) - 0.125
    return torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(COUNT, 2, 3)


def look(images, maps, grad, backend):
    found = sample(
        images, maps, SIZE, torch.full((3,), 0.45), torch.full((3,), 0.23), grad.dtype,
        backend=backend,
    )  # fmt: skip
    return found, *torch.autograd.grad(found, images, grad)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-8)])
def test_images_of_real_size(dtype, tolerance):
    images = torch.rand(COUNT, 3, SIZE, SIZE, requires_grad=True)
    maps, grad = draw_maps(), torch.randn(COUNT, 3, SIZE, SIZE).to(dtype)
    expected, expected_gradient = look(images, maps, grad, "torch")
    found, gradient = look(images, maps, grad, "triton")
    torch.testing.assert_close(found, expected, rtol=2 * tolerance, atol=tolerance)
    # Torch keeps the gradient of the cast in float32, as the kernel does.
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)
    again = look(images, maps, grad, "triton")
    assert torch.equal(again[0], found)
    assert torch.equal(again[1], gradient)


def test_random_numbers_of_real_size():
    keys, steps = torch.randint(-(2**62), 2**62, (COUNT,)), torch.arange(COUNT)
    for draw in (philox_uniform, philox_normal):
        assert torch.equal(draw(keys, steps, 49_920, backend="triton"), draw(keys, steps, 49_920))


def test_a_step_is_captured_in_a_graph_and_never_waits_for_the_host():
    keys, steps = torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.int64)
    images = torch.zeros(COUNT, 3, SIZE, SIZE, requires_grad=True)
    exp_avg, exp_avg_sq = torch.zeros_like(images), torch.zeros_like(images)
    count, running = torch.zeros(COUNT), torch.ones(COUNT, dtype=torch.bool)
    state = (steps, images.detach(), exp_avg, exp_avg_sq, count)
    maps, grad = draw_maps(), torch.randn(COUNT, 3, SIZE, SIZE)
    mean, std = torch.full((3,), 0.45), torch.full((3,), 0.23)

    def advance():
        shift = philox_uniform(keys, steps, 2, backend="triton") * 0.1
        moved = torch.cat([maps[:, :, :2], shift[:, :, None]], dim=2)
        found = sample(images, moved, SIZE, mean, std, torch.float32, backend="triton")
        (gradient,) = torch.autograd.grad(found, images, grad)
        adam_step(
            images.detach(), gradient, exp_avg, exp_avg_sq, count, running,
            learning_rate=0.05, betas=(0.9, 0.999), eps=1e-8, backend="triton",
        )  # fmt: skip
        steps.add_(1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        advance()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    for value in state:
        value.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = images.detach().clone()
    for value in state:
        value.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        advance()
    for value in state:
        value.zero_()
    for _ in range(4):
        graph.replay()
    assert torch.equal(images.detach(), expected)
    assert steps.unique().tolist() == [4]
