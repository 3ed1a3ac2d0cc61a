import math

import pytest
import torch

from polylight.kernels import adam_step

RATE, BETAS, EPS = 0.05, (0.9, 0.999), 1e-8


def make(shape, device, dtype=torch.float32):
    """Latents, and the moments and counts of images that have taken no step."""
    latents = draw(shape, 0).to(device, dtype)
    zero = torch.zeros_like(latents)
    return latents, zero.clone(), zero, zero.new_zeros(shape[0])


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take(state, grad, running, backend, rate=RATE):
    latents, exp_avg, exp_avg_sq, step = state
    adam_step(
        latents,
        grad.to(latents),
        exp_avg,
        exp_avg_sq,
        step,
        running,
        learning_rate=rate,
        betas=BETAS,
        eps=EPS,
        backend=backend,
    )


@pytest.mark.parametrize("shape", [(5, 1), (1, 3, 7, 5), (4, 3, 6, 4, 2), (2, 1024), (3, 2501)])
def test_every_image_takes_the_steps_of_an_adam_of_its_own(shape, backend, device):
    state = make(shape, device)
    rows = [torch.nn.Parameter(row.double()) for row in state[0].clone()]
    adams = [torch.optim.Adam([row], lr=RATE, betas=BETAS, eps=EPS) for row in rows]
    images = torch.arange(shape[0])
    for turn in range(24):
        # Image s enters at turn s and leaves after turn 15 + s.
        running = (images <= turn) & (turn < 15 + images)
        # Of sizes from 1e-6 to 1e6.
        grad = draw(shape, turn) * 10.0 ** (turn % 13 - 6)
        take(state, grad, running.to(device), backend)
        for image in running.nonzero().flatten().tolist():
            rows[image].grad = grad[image].to(rows[image])
            adams[image].step()
    expected = torch.stack([row.detach() for row in rows])
    torch.testing.assert_close(state[0].double(), expected, rtol=2e-6, atol=2e-6)
    for index, name in ((1, "exp_avg"), (2, "exp_avg_sq")):
        moments = torch.stack([a.state[r][name] for a, r in zip(adams, rows, strict=True)])
        torch.testing.assert_close(
            state[index].double(), moments, rtol=1e-5, atol=1e-5 * float(moments.abs().max())
        )
    assert state[3].tolist() == [min(15, 24 - s) for s in range(shape[0])]


@pytest.mark.parametrize("seen", [0, 1, 2, 10, 100, 500, 700, 5000, 100_000])
def test_bias_is_corrected_at_any_count(seen, backend, device):
    state = make((2, 9), device)
    state[3].fill_(seen)
    before, grad = state[0].double(), draw((2, 9), 1).to(device)
    take(state, grad, torch.ones(2, dtype=torch.bool, device=device), backend)
    mean, square = 0.1 * grad.double(), 0.001 * grad.double().square()
    mean /= -math.expm1((seen + 1) * math.log(BETAS[0]))
    square /= -math.expm1((seen + 1) * math.log(BETAS[1]))
    moved = before - RATE * mean / (square.sqrt() + EPS)
    torch.testing.assert_close(state[0].double(), moved, rtol=5e-7, atol=5e-7)


def test_images_at_rest_keep_every_bit(backend, device):
    state = make((6, 37), device)
    running = torch.ones(6, dtype=torch.bool, device=device)
    for turn in range(3):
        take(state, draw((6, 37), turn), running, backend)
    running[[1, 4]] = False
    before = [value.clone() for value in state]
    grad = draw((6, 37), 9)
    grad[1], grad[4] = torch.nan, torch.inf
    take(state, grad, running, backend)
    for value, was in zip(state, before, strict=True):
        assert torch.equal(value[[1, 4]], was[[1, 4]])
        assert value.isfinite().all()
        changed = (value != was).flatten(1).any(1) if value.ndim > 1 else value != was
        assert changed.tolist() == [True, False, True, True, False, True]


def test_a_reset_image_starts_anew(backend, device):
    state = make((3, 20), device)
    running = torch.ones(3, dtype=torch.bool, device=device)
    for turn in range(5):
        take(state, draw((3, 20), turn), running, backend)
    for value in state[1:]:
        value[1] = 0
    fresh = torch.nn.Parameter(state[0][1].double())
    adam = torch.optim.Adam([fresh], lr=RATE)
    for turn in range(5, 12):
        grad = draw((3, 20), turn)
        take(state, grad, running, backend)
        fresh.grad = grad[1].to(fresh)
        adam.step()
    torch.testing.assert_close(state[0][1].double(), fresh.detach(), rtol=2e-6, atol=2e-6)


def test_what_an_image_does_depends_on_no_place(backend, device):
    state = make((1, 45), device)
    many = tuple(value.repeat(9, *[1] * (value.ndim - 1)) for value in state)
    running = torch.ones(9, dtype=torch.bool, device=device)
    for turn in range(10):
        grad = draw((1, 45), turn)
        take(state, grad, running[:1], backend)
        take(many, grad.repeat(9, 1), running, backend)
        assert (many[0] == state[0]).all()


def test_the_gradient_need_not_be_contiguous(backend, device):
    shape, running = (3, 4, 6), torch.ones(3, dtype=torch.bool, device=device)
    state, other = make(shape, device), make(shape, device)
    grad = draw((3, 6, 4), 1).to(device)
    take(state, grad.transpose(1, 2), running, backend)
    take(other, grad.transpose(1, 2).contiguous(), running, backend)
    assert torch.equal(state[0], other[0])


def test_the_kernels_refuse_what_they_would_get_wrong(backend, device):
    if backend == "torch":
        pytest.skip("takes any floats")
    running = torch.ones(3, dtype=torch.bool, device=device)
    state = make((3, 8), device, torch.float64)
    with pytest.raises(ValueError, match=r"contiguous float32 latents; got torch\.float64"):
        take(state, draw((3, 8), 1), running, backend)
    latents, exp_avg, exp_avg_sq, step = make((3, 8), device)
    state = latents, exp_avg, exp_avg_sq.T.contiguous().T, step
    with pytest.raises(ValueError, match=r"float32 exp_avg_sq; got .* strides \(1, 3\)"):
        take(state, draw((3, 8), 1), running, backend)
