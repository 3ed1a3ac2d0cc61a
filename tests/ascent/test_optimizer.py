import pytest
import torch
from torch import nn

from polylight.ascent.optimizer import ImageAdam


def gradients(steps, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(steps)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize("size", [5, 37])
def test_every_slot_takes_the_steps_of_an_adam_of_its_own(dtype, tolerance, size):
    shape = (size, 3, 4, 2)
    latents = nn.Parameter(gradients(1, shape, dtype)[0])
    running = torch.zeros(size, dtype=torch.bool)
    optimizer = ImageAdam(latents, running, 0.05)
    plain = [nn.Parameter(row.clone()) for row in latents.detach()]
    adams = [torch.optim.Adam([row], lr=0.05) for row in plain]
    for step, gradient in enumerate(gradients(40, shape, dtype)):
        # Slot s enters at step s % 7 and leaves after step 20 + s.
        slots = torch.arange(size)
        running.copy_((slots % 7 <= step) & (step < 20 + slots))
        latents.grad = torch.where(running.view(-1, 1, 1, 1), gradient, 0)
        optimizer.step()
        for slot in running.nonzero().flatten().tolist():
            plain[slot].grad = gradient[slot]
            adams[slot].step()
    expected = torch.stack([row.detach() for row in plain])
    torch.testing.assert_close(latents.detach(), expected, rtol=tolerance, atol=tolerance)


def test_slots_at_rest_stay_where_they_are():
    latents = nn.Parameter(torch.randn(4, 10))
    running = torch.ones(4, dtype=torch.bool)
    optimizer = ImageAdam(latents, running, 0.1)
    for gradient in gradients(3, (4, 10), torch.float32):
        latents.grad = gradient
        optimizer.step()
    running[1:3] = False
    before = latents.detach().clone()
    for gradient in gradients(3, (4, 10), torch.float32):
        latents.grad = gradient
        optimizer.step()
    moved = (latents.detach() != before).any(1)
    assert moved.tolist() == [True, False, False, True]


@pytest.mark.parametrize("size", [6, 40])
def test_a_reset_slot_starts_anew_and_the_others_do_not_notice(size):
    def climb(reset):
        latents = nn.Parameter(torch.zeros(size, 7))
        optimizer = ImageAdam(latents, torch.ones(size, dtype=torch.bool), 0.1)
        drawn = gradients(12, (size, 7), torch.float32)
        for step, gradient in enumerate(drawn):
            if reset and step == 5:
                optimizer.reset(torch.tensor([2, size - 1]))
            latents.grad = gradient
            optimizer.step()
            if step == 4:
                middle = latents.detach().clone()
        return middle, latents.detach()

    _, undisturbed = climb(reset=False)
    middle, latents = climb(reset=True)
    others = [s for s in range(size) if s not in (2, size - 1)]
    assert torch.equal(latents[others], undisturbed[others])
    fresh = nn.Parameter(middle[2].clone())
    adam = torch.optim.Adam([fresh], lr=0.1)
    for gradient in gradients(12, (size, 7), torch.float32)[5:]:
        fresh.grad = gradient[2]
        adam.step()
    torch.testing.assert_close(latents[2], fresh.detach(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("size", [3, 8, 37])
def test_what_a_slot_does_depends_on_no_place(size):
    """The same latent, gradient and step in every slot, also in the last ones of a vector."""
    latents = nn.Parameter(torch.randn(1, 45).repeat(size, 1))
    optimizer = ImageAdam(latents, torch.ones(size, dtype=torch.bool), 0.05)
    for gradient in gradients(20, (1, 45), torch.float32):
        latents.grad = gradient.repeat(size, 1)
        optimizer.step()
        assert (latents == latents[:1]).all()


def test_a_closure_leaves_the_gradient():
    latents = nn.Parameter(torch.ones(2, 3))
    optimizer = ImageAdam(latents, torch.ones(2, dtype=torch.bool), 0.1)

    def closure():
        latents.grad = torch.ones(2, 3)

    optimizer.step(closure)
    assert optimizer.state[latents]["step"].tolist() == [1.0, 1.0]
    torch.testing.assert_close(latents.detach(), torch.full((2, 3), 0.9))
