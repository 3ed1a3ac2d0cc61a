"""Image-steps per second of the ascent, beside what the hardware and the network would allow."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceiling import (
    BARE,
    CONVOLUTIONS,
    HALF,
    HANDED_ON,
    PRODUCTS,
    UNFUSED,
    WHOLE,
    Convolutions,
    free_subject,
    part_rows,
    parts,
    products,
)
from benchmarks.common import (
    Competitor,
    Level,
    Limit,
    Row,
    Timed,
    gate,
    measure,
    ratios,
    row,
    take_turns,
)
from polylight.ascent.allocator import keep_freed_memory
from polylight.ascent.objective import make_targets
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.pool import Pool
from polylight.ascent.precision import arithmetic
from polylight.ascent.presets import PRESETS, Preset
from polylight.ascent.settings import Slot
from polylight.kernels import stream_key
from polylight.networks import Model, load_model
from polylight.networks.subject import Subject
from polylight.neurons import Component, Neuron

# As in the quickstart: images of a neuron that start together, and steps between two looks.
_ROUND, _STEPS_PER_TURN = 4, 4
# Side of matrices that keep each kind of processor busy.
_MATRIX = {"cpu": 1024, "cuda": 8192}
# Whose rate is held against whose, and what the share has to be.
_SHARES: tuple[tuple[str, str, Limit | None], ...] = (
    (WHOLE, CONVOLUTIONS, (">=", 0.7)),
    (WHOLE, HANDED_ON, None),
    (WHOLE, BARE, None),
    (WHOLE, PRODUCTS, None),
    (BARE, CONVOLUTIONS, None),
    (BARE, HANDED_ON, None),
    (BARE, UNFUSED, None),
    (HALF, UNFUSED, None),
)


def build_pool(subject: Subject, preset: Preset, size: int) -> Pool:
    """A pool of ``size`` slots on the first neurons of the subject's only layer, still empty."""
    pool = Pool(
        subject,
        preset.parametrization,
        preset.augmentation,
        preset.ascent,
        size=size,
        num_components=1,
        max_images=2 * _ROUND,
        # Whatever the statistics of the layer are, using them takes the same time.
        feature_start=torch.zeros(1, subject.channels[0]),
        feature_std=torch.ones(1, subject.channels[0]),
    )
    return pool.to(subject.mean.device)


def ascent(pool: Pool) -> tuple[Callable[[int], float], Callable[[], None]]:
    """The ascent of a pool, and what fills the pool anew before it.

    Args:
        pool: Made anew.

    Returns:
        A function that takes a number of steps and returns how many image-steps they were, and
        one that lets new images enter all slots.
    """
    optimizer = ImageAdam.of(pool)
    slots = list(range(pool.size))
    neurons = [Neuron((Component(pool.subject.layers[0], slot // _ROUND),)) for slot in slots]
    targets = make_targets(neurons, pool.subject.shapes, {}, 1)
    entries = [
        Slot(
            key=stream_key("benchmark", slot),
            active_index=slot // _ROUND,
            max_steps=pool.ascent.max_steps,
            explore_steps=pool.ascent.explore_steps,
        )
        for slot in slots
    ]

    def climb(num_steps: int) -> float:
        before = pool.steps.sum()
        for _ in range(0, num_steps, _STEPS_PER_TURN):
            take_steps(pool, optimizer, _STEPS_PER_TURN)
        return float(pool.steps.sum() - before)

    return climb, lambda: optimizer.reset(pool.refill(slots, entries, targets))


def take_steps(pool: Pool, optimizer: ImageAdam, num_steps: int) -> None:
    """Let a pool climb, as the engine does."""
    for _ in range(num_steps):
        pool.climb()
        optimizer.step()


def random_images(subject: Subject, size: int) -> Tensor:
    """Images that a subject can be shown: float32 [size, 3, H, W] in [0, 1], channels last."""
    side, device = subject.image_size, subject.mean.device
    images = torch.rand(size, 3, side, side, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def bare(subject: Subject, size: int) -> Callable[[int], float]:
    """Forward to the subject's layer and backward to the images, and nothing else.

    Args:
        subject: The network.
        size: Images of the batch.

    Returns:
        A function that takes a number of passes and returns how many image-steps they were.
    """
    images = random_images(subject, size).requires_grad_()
    seed = torch.zeros_like(subject(images)[0].post.detach())
    seed[:, 0] = 1.0 / seed[0, 0].numel()

    def passes(count: int) -> float:
        for _ in range(count):
            torch.autograd.grad(subject(images)[0].post, images, seed)
        return float(count * size)

    return passes


def differences(model: Model, subject: Subject) -> tuple[float, float]:
    """How far a subject is from the network as it came, with respect to the largest value.

    Args:
        model: The network as it came.
        subject: Cut from it, with one layer.

    Returns:
        Largest difference of the activations of any image, and of their gradient to the middle
        image: where an activation is as near to the kink of a rectifier as it is rounded, the
        gradient may take either side, and that of a whole image changes.
    """
    caught: list[Tensor] = []
    layer = model.net.get_submodule(subject.layers[0])
    handle = layer.register_forward_hook(lambda module, given, output: caught.append(output))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, subject.image_size, subject.image_size, generator=generator)
    images.requires_grad_()
    model.net(model.preprocess(images))
    handle.remove()
    expected, found = caught[0], subject(images)[0].post
    seed = torch.randn(expected.shape, generator=generator)
    (slope,) = torch.autograd.grad(expected, images, seed)
    (ours,) = torch.autograd.grad(found, images, seed)
    return float(_apart(found, expected).max()), float(_apart(ours, slope).median())


@torch.no_grad()
def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Largest difference of each image, as a share of its largest value: [B]."""
    return (found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)


def compare(
    model: Model,
    layer: str,
    pool_sizes: tuple[int, ...],
    steps: int,
    repeats: int,
    preset: Preset = PRESETS["fast"],
    headline: int = 8,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Measure the ascent, the bare network and its convolutions at some pool sizes.

    Args:
        model: The network.
        layer: Where it is cut.
        pool_sizes: Numbers of slots.
        steps: Steps of a repeat; a multiple of four, too few for an image to converge.
        repeats: Number of repeats.
        preset: How images are made.
        headline: The pool size whose shares belong into the short table, and of which the
            parts of a step are measured.
        device: Where; the gates are looked at on the CPU.

    Returns:
        Gates and, for each pool size, all rates and their ratios.
    """
    side = preset.parametrization.size
    # What is one operation here is convolutions to the library, whose time is the ceiling.
    subject, plain = Subject(model, [layer], side), Subject(model, [layer], side, kernels="torch")
    activation, gradient = differences(model, subject)
    what = "of the cut subject from the whole network, largest difference"
    gates = [
        gate(f"activations {what}", activation, ("<=", 1e-4), "of the largest"),
        gate(f"gradient to the image {what}", gradient, ("<=", 1e-5), "of the largest"),
    ]
    place = torch.device(device)
    subject.to(place)
    plain.to(place)
    half = plain.cast(torch.bfloat16)
    rows = []
    case = f"ascent of {model.name} to {layer}"
    for size in pool_sizes:
        climb, refill = ascent(build_pool(subject, preset, size))
        alone = Convolutions(plain, random_images(plain, size))
        multiply = products(alone.operations, _MATRIX[place.type], place)
        turns = {
            WHOLE: Competitor(partial(climb, steps), refill),
            BARE: Competitor(partial(bare(subject, size), steps)),
            UNFUSED: Competitor(partial(bare(plain, size), steps)),
            HALF: Competitor(partial(bare(half, size), steps)),
            CONVOLUTIONS: Competitor(partial(alone.passes, steps, handed_on=False)),
            HANDED_ON: Competitor(partial(alone.passes, steps, handed_on=True)),
            PRODUCTS: Competitor(partial(multiply, steps * size)),
        }
        rates = tuple(turns)
        if size == headline:
            nothing = free_subject(model, subject, random_images(subject, size))
            free = build_pool(nothing, preset, size)
            turns |= parts(free, *ascent(free), steps, _STEPS_PER_TURN)
        # As in the pool, so that the ceiling is that of the same numbers.
        with arithmetic("float32", place):
            timed = take_turns(turns, repeats, gates=gates)
        shape = f"[{size}, 3, {side}, {side}]"
        rows += _rows(
            case, shape, {n: timed[n] for n in rates}, "headline" if size == headline else "table"
        )
        if size == headline:
            rows += part_rows(case, shape, timed)
    return [*gates, *rows]


def _rows(case: str, shape: str, timed: dict[str, Timed], level: Level) -> list[Row]:
    """Rates, and shares of them; ``level`` is that of polylight's shares."""
    rows = [
        row(
            taken.rates,
            case=case,
            provider=name,
            shape=shape,
            unit="image-steps/s",
            failure=taken.failure,
        )
        for name, taken in timed.items()
    ]
    for ours, theirs, limit in _SHARES:
        shares, failure = ratios(timed[ours], timed[theirs])
        rows.append(
            row(
                shares,
                case=case,
                provider=ours,
                shape=shape,
                unit=f"of the {theirs}",
                limit=limit,
                failure=failure,
                level=level if ours == WHOLE else "table",
            )
        )
    return rows


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pool_sizes = (8, 16, 32) if device == "cpu" else (64, 256)
    headline = 8 if device == "cpu" else 256
    if quick:
        pool_sizes, headline = pool_sizes[:1], pool_sizes[0]
    steps, repeats = (4, 2) if quick else (16, 20)
    model = load_model("efficientnet_lite0")
    rows = compare(model, "blocks.4", pool_sizes, steps, repeats, headline=headline, device=device)
    config = {
        "preset": "fast",
        "device": device,
        "pool_sizes": list(pool_sizes),
        "steps": steps,
        "repeats": repeats,
    }
    return rows, config


if __name__ == "__main__":
    sys.exit(measure("ascent", run, sys.argv[1:]))
