import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polylight.kernels import sample

pytestmark = pytest.mark.usefixtures("poison")

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
# Of the largest value: float32 coordinates, and what they are worth in grey.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-8}
# Zoom, degrees, shift in units of half the image.
MOVES = [
    (1.0, 0.0, 0.0, 0.0),
    (1.0, 5.0, 0.1, -0.2),
    (0.5, 45.0, 0.0, 0.1),
    (2.0, -45.0, 0.0, 0.0),
    (1.1, 170.0, 0.5, 0.5),
    (3.0, 30.0, 0.3, 0.0),
    (0.05, 20.0, 0.0, 0.0),
    (1.0, 0.0, 1.5, 0.0),
]


def draw_maps(moves, canvas, size, device):
    rows = []
    for zoom, degrees, across, down in moves:
        cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
        part = canvas / size
        rows.append([[cos * part, -sin * part, across], [sin * part, cos * part, down]])
    return torch.tensor(rows, device=device)


def draw(shape, device, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def run(images, maps, canvas, backend, dtype=torch.float32, grad=None):
    """Sample, and take the gradient to the images."""
    images = images.detach().requires_grad_()
    mean, std = MEAN.to(images.device), STD.to(images.device)
    found = sample(images, maps, canvas, mean, std, dtype, backend=backend)
    if grad is None:
        grad = draw(found.shape, found.device, seed=1) - 0.5
    (gradient,) = torch.autograd.grad(found, images, grad.to(dtype))
    return found.detach(), gradient


def reference(images, maps, canvas, grad=None):
    """The same in float64 by torch's own operations."""
    images, maps = images.detach().double().requires_grad_(), maps.double()
    grid = F.affine_grid(maps, [len(images), 3, canvas, canvas], align_corners=False)
    moved = F.grid_sample(images - 0.5, grid, align_corners=False) + 0.5
    shape = (3, 1, 1)
    found = (moved - MEAN.to(moved).view(shape)) / STD.to(moved).view(shape)
    if grad is None:
        grad = draw(found.shape, found.device, seed=1) - 0.5
    (gradient,) = torch.autograd.grad(found, images, grad.double())
    return found.detach(), gradient


def assert_near(found, expected, tolerance):
    scale = max(float(expected.abs().max()), 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("height", "width", "canvas"),
    [(8, 8, 8), (13, 13, 20), (30, 30, 33), (17, 17, 6), (22, 13, 15), (2, 40, 1), (1, 1, 3)],
)
def test_values_and_gradient_are_those_of_grid_sample(height, width, canvas, backend, device):
    images = draw((len(MOVES), 3, height, width), device)
    maps = draw_maps(MOVES, canvas, max(height, width), device)
    found, gradient = run(images, maps, canvas, backend)
    expected, expected_gradient = reference(images, maps, canvas)
    assert_near(found, expected, TOLERANCE[torch.float32])
    assert_near(gradient, expected_gradient, TOLERANCE[torch.float32])
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_an_image_of_real_size(backend, device):
    images, maps = (
        draw((1, 3, 128, 128), device),
        draw_maps([(1.05, 4.0, 0.05, 0)], 128, 128, device),
    )
    found, gradient = run(images, maps, 128, backend)
    expected, expected_gradient = reference(images, maps, 128)
    assert_near(found, expected, TOLERANCE[torch.float32])
    assert_near(gradient, expected_gradient, TOLERANCE[torch.float32])


def test_maps_need_not_be_rotations(backend, device):
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(12, 2, 3, generator=generator).to(device)
    images = draw((12, 3, 14, 10), device)
    found, gradient = run(images, maps, 11, backend)
    expected, expected_gradient = reference(images, maps, 11)
    assert_near(found, expected, TOLERANCE[torch.float32])
    assert_near(gradient, expected_gradient, TOLERANCE[torch.float32])


def test_maps_without_inverse(backend, device):
    """The whole canvas shows a point, or a line, of the image."""
    maps = torch.zeros(3, 2, 3, device=device)
    maps[1, 0, 0] = maps[2, 1, 1] = 1.0
    maps[:, :, 2] = 0.07
    images = draw((3, 3, 10, 10), device)
    # Divided by zero as on a GPU, where nothing warns.
    with np.errstate(all="ignore"):
        found, gradient = run(images, maps, 12, backend)
    expected, expected_gradient = reference(images, maps, 12)
    assert_near(found, expected, TOLERANCE[torch.float32])
    assert_near(gradient, expected_gradient, TOLERANCE[torch.float32])


def test_outside_all_is_grey_and_nothing_pulls(backend, device):
    moves = [(1.0, 0.0, shift, 0.0) for shift in (2.2, -2.2, 1e6, -1e9)]
    images = draw((4, 3, 12, 12), device)
    found, gradient = run(images, draw_maps(moves, 12, 12, device), 12, backend)
    grey = ((0.5 - MEAN) / STD).to(device).view(1, 3, 1, 1).expand(found.shape)
    torch.testing.assert_close(found, grey, rtol=1e-6, atol=1e-7)
    assert (gradient == 0).all()


def test_bfloat16_rounds_the_float32_result(backend, device):
    images, maps = draw((3, 3, 16, 16), device), draw_maps(MOVES[:3], 20, 16, device)
    grad = (draw((3, 3, 20, 20), device, seed=1) - 0.5).bfloat16()
    full, full_gradient = run(images, maps, 20, backend, grad=grad)
    found, gradient = run(images, maps, 20, backend, torch.bfloat16, grad)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Triton's interpreter cuts digits off, a GPU rounds.
    cut = backend == "triton" and device.type == "cpu"
    torch.testing.assert_close(found.float(), full, rtol=2**-7 if cut else 2**-8, atol=0)
    assert gradient.dtype == torch.float32
    assert_near(gradient, full_gradient.double(), TOLERANCE[torch.bfloat16])


def test_gradient_is_the_adjoint(backend, device):
    """<sample(x) - sample(0), g> = <x, gradient>."""
    images, maps = draw((4, 3, 18, 18), device), draw_maps(MOVES[1:5], 14, 18, device)
    grad = draw((4, 3, 14, 14), device, seed=1) - 0.5
    found, gradient = run(images, maps, 14, backend, grad=grad)
    zero, _ = run(torch.zeros_like(images), maps, 14, backend, grad=grad)
    left = ((found - zero).double() * grad.double()).sum((1, 2, 3))
    right = (images.double() * gradient.double()).sum((1, 2, 3))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)


def test_memory_need_not_be_contiguous(backend, device):
    images, maps = draw((2, 3, 12, 10), device), draw_maps(MOVES[:2], 9, 12, device)
    grad = draw((2, 3, 9, 9), device, seed=1) - 0.5
    found, gradient = run(images, maps, 9, backend, grad=grad)
    wide = torch.full((2, 6, 12, 20), torch.nan, device=device)
    wide[:, ::2, :, ::2] = images
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "strided": wide[:, ::2, :, ::2],
    }
    for layout in layouts.values():
        other, other_gradient = run(layout, maps, 9, backend, grad=grad)
        assert torch.equal(other, found)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-6, atol=1e-6)
    last = grad.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(run(images, maps, 9, backend, grad=last)[1], gradient)
    one = torch.ones((), device=device).expand(grad.shape)
    _, expected = reference(images, maps, 9, one)
    assert_near(run(images, maps, 9, backend, grad=one)[1], expected, TOLERANCE[torch.float32])


def test_an_image_does_not_depend_on_the_others(backend, device):
    images, maps = draw((5, 3, 12, 12), device), draw_maps(MOVES[:5], 15, 12, device)
    grad = draw((5, 3, 15, 15), device, seed=1) - 0.5
    together = run(images, maps, 15, backend, grad=grad)
    for place in (0, 2, 4):
        row = slice(place, place + 1)
        alone = run(images[row], maps[row], 15, backend, grad=grad[row])
        assert torch.equal(alone[0], together[0][row])
        if backend != "torch":  # which adds up in any order on a GPU
            assert torch.equal(alone[1], together[1][row])


def test_an_image_does_not_depend_on_the_number_of_threads():
    # Enough for three threads.
    images, maps = draw((25, 3, 128, 128), "cpu"), draw_maps([MOVES[1]] * 25, 128, 128, "cpu")
    maps += 0.01 * draw(maps.shape, "cpu", seed=3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(images, maps, 128, "numba"))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_maps_that_are_not_finite_harm_nobody_else(odd):
    images, maps = draw((3, 3, 9, 9), "cpu"), draw_maps(MOVES[:3], 9, 9, "cpu")
    expected = run(images, maps, 9, "numba")
    maps[1] = odd
    found = run(images, maps, 9, "numba")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[::2], other[::2])
        assert one.isfinite().all()


def test_maps_get_no_gradient(backend, device):
    images = draw((1, 3, 8, 8), device).requires_grad_()
    maps = draw_maps(MOVES[:1], 8, 8, device).requires_grad_()
    found = sample(images, maps, 8, MEAN.to(device), STD.to(device), torch.float32, backend=backend)
    found.sum().backward()
    assert maps.grad is None
    assert images.grad is not None


def test_autocast_does_not_round_where_pixels_are(backend, device):
    images, maps = draw((2, 3, 32, 32), device), draw_maps(MOVES[:2], 32, 32, device)
    expected, _ = run(images, maps, 32, backend)
    with torch.autocast(device.type, torch.bfloat16):
        found, _ = run(images, maps, 32, backend)
    assert torch.equal(found, expected)
