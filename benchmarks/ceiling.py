"""What the hardware allows the ascent, and where the rest of a step goes.

The ceiling are the convolutions of the subject alone, each as the library has it; the rest is
measured part by part.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import Competitor, Row, Timed, row
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.pool import Pool
from polylight.kernels import sample
from polylight.networks import Model
from polylight.networks.subject import Subject

WHOLE, BARE = "polylight", "bare forward + backward"
UNFUSED = "bare forward + backward, blocks as convolutions"
HALF = "bare forward + backward, convolutions in bfloat16"
CONVOLUTIONS, HANDED_ON = "convolutions alone", "convolutions alone, handed on"
PRODUCTS = "same arithmetic in matrix products"
_DRAW, _PAINT, _AUGMENT, _OPTIMIZER = "random maps", "paint", "augment", "optimizer"
_REST = "step with a network that costs nothing"

# Each part as what was timed, and how often it counts.
_PARTS: dict[str, dict[str, int]] = {
    "whole step": {WHOLE: 1},
    "random maps": {_DRAW: 1},
    "paint, forward + backward": {_PAINT: 1},
    "augment, forward + backward": {_AUGMENT: 1},
    "subject, bare forward + backward": {BARE: 1},
    "objective, repulsion and bookkeeping": {
        _REST: 1,
        **dict.fromkeys((_DRAW, _PAINT, _AUGMENT, _OPTIMIZER), -1),
    },
    "optimizer": {_OPTIMIZER: 1},
    "unaccounted: whole step without all these": {WHOLE: 1, BARE: -1, _REST: -1},
}


class _Call(NamedTuple):
    """A convolution that was seen."""

    given: Tensor
    weight: Tensor
    bias: Tensor | None
    settings: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups


class _Recorder(TorchDispatchMode):
    """Writes down every convolution, with a copy of its input in channels-last memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            given, weight, bias, *settings = args
            # A copy, as what comes next may write over it.
            copy = given.clone(memory_format=torch.channels_last)
            self.calls.append(_Call(copy, weight, bias, tuple(settings)))
        return func(*args, **(kwargs or {}))


class Convolutions:
    """The convolutions of a forward, and of the backward to the images, without anything between.

    Args:
        subject: A network of two-dimensional convolutions.
        images: float32 [B, 3, H, W] in [0, 1], what it is shown.

    Raises:
        ValueError: If there are no convolutions.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, images: Tensor) -> None:
        self.size = len(images)
        with _Recorder() as recorder:
            subject(images)
        if not recorder.calls:
            raise ValueError(f"expected a network with convolutions before {subject.layers[-1]}")
        self.calls = recorder.calls
        # What a gradient is made of takes the same time.
        self.gradients = [torch.randn_like(_forward(call, call.given)) for call in self.calls]

    @property
    def operations(self) -> float:
        """Multiplications and additions of an image, forward and backward to the inputs."""
        # Backward, each weight meets each position as often as forward.
        return sum(
            4.0 * made[0].numel() * call.weight[0].numel()
            for call, made in zip(self.calls, self.gradients, strict=True)
        )

    @torch.no_grad()
    def run(self, handed_on: bool) -> Tensor:
        """Run all of them forward, then all backward to their inputs.

        Args:
            handed_on: Whether each is given what the one before it has just made, where that has
                the right shape, rather than a tensor of its own. It is then in the cache, as it
                is in the network.

        Returns:
            The gradient to the input of the first.
        """
        kept = []
        output = self.calls[0].given
        for call in self.calls:
            given = _choose(output, call.given, handed_on)
            output = _forward(call, given)
            # The backward of the network needs outputs, so their memory cannot be used again.
            kept.append((given, output))
        gradient = self.gradients[-1]
        for call, own in zip(reversed(self.calls), reversed(self.gradients), strict=True):
            given, output = kept.pop()
            gradient = torch.ops.aten.convolution_backward.default(
                _choose(gradient, own, handed_on),
                given,
                call.weight,
                None,
                *call.settings,
                [True, False, False],
            )[0]
        return gradient

    def passes(self, count: int, *, handed_on: bool) -> float:
        """Run a number of times; returns how many image-steps it was."""
        for _ in range(count):
            self.run(handed_on)
        return float(count * self.size)


def products(operations: float, side: int, device: torch.device) -> Callable[[int], float]:
    """Products of square matrices in float32, the most arithmetic that a processor does.

    Args:
        operations: Multiplications and additions of an image-step, > 0.
        side: Of the matrices.
        device: Where.

    Returns:
        A function that takes a number of image-steps, does at least as much arithmetic, and
        returns how many image-steps it would have been.
    """
    left, right = torch.randn(2, side, side, device=device)
    each = 2.0 * side**3

    def multiply(count: int) -> float:
        number = math.ceil(count * operations / each)
        for _ in range(number):
            left @ right
        return number * each / operations

    return multiply


def _forward(call: _Call, given: Tensor) -> Tensor:
    return torch.convolution(given, call.weight, call.bias, *call.settings)


def _choose(made: Tensor, own: Tensor, handed_on: bool) -> Tensor:
    return made if handed_on and made.shape == own.shape else own


def free_subject(model: Model, subject: Subject, images: Tensor) -> Subject:
    """Make a subject that costs nothing: the same activations and the same gradient, always.

    Args:
        model: Where ``subject`` comes from.
        subject: With one layer; its activations are kept.
        images: float32 [B, 3, H, W] in [0, 1], what it is shown, B being the only batch size that
            the result is good for.

    Returns:
        A subject on the same device.
    """
    with torch.no_grad():
        post = subject(images)[0].post
    net = nn.Sequential()
    net.add_module("recall", _Recall(post.cpu(), torch.randn_like(images).cpu()))
    found = Subject(dataclasses.replace(model, net=net.eval()), ["recall"], subject.image_size)
    return found.to(images.device)


class _Recall(nn.Module):
    """Stands in for a network."""

    result: Tensor
    slope: Tensor

    def __init__(self, result: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("result", result)
        self.register_buffer("slope", slope)

    def forward(self, images: Tensor) -> Tensor:
        """What is known, for as many images as there are."""
        count = len(images)
        found: Tensor = _Constant.apply(images, self.slope[:count], self.result[:count])
        return found


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, slope: Tensor, result: Tensor) -> Tensor:
        ctx.slope = slope
        return result.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.slope, None, None


def parts(
    pool: Pool,
    climb: Callable[[int], float],
    refill: Callable[[], None],
    steps: int,
    stride: int,
) -> dict[str, Competitor]:
    """The parts of a step outside the subject, each alone.

    Args:
        pool: A pool whose subject costs nothing.
        climb: Its ascent; takes a number of steps and returns how many image-steps they were.
        refill: Fills it anew.
        steps: Steps of a repeat; a multiple of ``stride``.
        stride: Steps whose maps are drawn at once.

    Returns:
        By name; each counts image-steps.
    """
    subject, latents, optimizer = pool.subject, pool.latents, ImageAdam.of(pool)
    mean, std = subject.mean.flatten(), subject.std.flatten()
    images = pool.decoder(latents).detach().requires_grad_()
    slope = torch.randn_like(images)
    refill()
    maps = pool.draw(1)[0]

    def move() -> Tensor:
        backend = pool.backend
        return sample(images, maps, subject.image_size, mean, std, torch.float32, backend=backend)

    # What comes back from the network has the memory format of what it was given.
    back = torch.randn_like(move())

    def paint() -> None:
        torch.autograd.grad(pool.decoder(latents), latents, slope)

    def augment() -> None:
        torch.autograd.grad(move(), images, back)

    def prepare_gradient() -> None:
        refill()
        climb(stride)

    def repeat(call: Callable[[], object], count: int) -> float:
        for _ in range(count):
            call()
        return float(steps * pool.size)

    return {
        _DRAW: Competitor(partial(repeat, partial(pool.draw, stride), steps // stride)),
        _PAINT: Competitor(partial(repeat, paint, steps)),
        _AUGMENT: Competitor(partial(repeat, augment, steps)),
        _OPTIMIZER: Competitor(partial(repeat, optimizer.step, steps), prepare_gradient),
        _REST: Competitor(partial(climb, steps), refill),
    }


def part_rows(case: str, shape: str, timed: Mapping[str, Timed]) -> list[Row]:
    """Say where the time of an image-step goes.

    Args:
        case: What was measured.
        shape: Size of the batch, as text.
        timed: Image-steps per second of the whole step, the bare pass, and all of
            :func:`parts`.

    Returns:
        A row for each part, one for the whole, and one for what no part accounts for;
        sums and differences are taken turn by turn.
    """
    rows = []
    for part, terms in _PARTS.items():
        failure = next((timed[name].failure for name in terms if timed[name].failure), "")
        turns = zip(*(timed[name].rates for name in terms), strict=not failure)
        values = [
            sum(1000.0 * sign / rate for sign, rate in zip(terms.values(), rates, strict=True))
            for rates in turns
        ]
        rows.append(
            row(
                values,
                case=f"{case}, where the time goes: {part}",
                unit="ms/image-step",
                shape=shape,
                failure=failure,
            )
        )
    return rows
