"""Image-steps per second of the ascent, beside what the network alone would allow."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Competitor, Level, Row, Timed, gate, measure, ratios, row, take_turns
from polylight.allocator import keep_freed_memory
from polylight.ascent import Pool, Slot
from polylight.kernels import stream_key
from polylight.models import Model, load_model
from polylight.neurons import Neuron, Part
from polylight.objective import make_targets
from polylight.presets import PRESETS, Preset
from polylight.subject import Subject

# As in the quickstart: images of a neuron that start together, and steps between two looks.
_ROUND, _STEPS_PER_TURN = 4, 4
_BARE = "bare forward + backward"


def build_pool(subject: Subject, preset: Preset, size: int) -> Pool:
    """A pool of ``size`` slots on the first neurons of the subject's only layer, still empty."""
    return Pool(
        subject,
        preset.parametrization,
        preset.augmentation,
        preset.ascent,
        size=size,
        num_parts=1,
        max_images=2 * _ROUND,
        # Whatever the statistics of the layer are, using them takes the same time.
        feature_mean=torch.zeros(1, subject.channels[0]),
        feature_std=torch.ones(1, subject.channels[0]),
    )


def ascent(pool: Pool) -> tuple[Callable[[int], float], Callable[[], None]]:
    """The ascent of a pool, and what fills the pool anew before it.

    Args:
        pool: Its optimizer is made here.

    Returns:
        A function that takes a number of steps and returns how many image-steps they were, and
        one that lets new images enter all slots.
    """
    optimizer = pool.configure_optimizer()
    slots = list(range(pool.size))
    neurons = [Neuron((Part(pool.subject.layers[0], slot // _ROUND),)) for slot in slots]
    targets = make_targets(neurons, pool.subject.layers, pool.subject.sizes, {}, 1)
    entries = [
        Slot(
            key=stream_key("benchmark", slot),
            seat=slot // _ROUND,
            max_steps=pool.ascent.max_steps,
            explore_steps=pool.ascent.explore_steps,
        )
        for slot in slots
    ]

    def climb(num_steps: int) -> float:
        before = pool.steps.sum()
        for _ in range(0, num_steps, _STEPS_PER_TURN):
            for maps in pool.draw(_STEPS_PER_TURN):
                pool.climb(maps)
                optimizer.step()
                pool.advance()
        return float(pool.steps.sum() - before)

    return climb, lambda: pool.refill(slots, entries, targets)


def bare(subject: Subject, size: int) -> Callable[[int], float]:
    """Forward to the subject's layer and backward to the images, and nothing else.

    Args:
        subject: The network.
        size: Images of the batch.

    Returns:
        A function that takes a number of passes and returns how many image-steps they were.
    """
    images = torch.rand(size, 3, subject.image_size, subject.image_size)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
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
        Largest difference of the activations, and of their gradient to the images.
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
    return _apart(found, expected), _apart(ours, slope)


def _apart(found: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        return float((found - expected).abs().max() / expected.abs().max())


def compare(
    model: Model,
    layer: str,
    pool_sizes: tuple[int, ...],
    steps: int,
    repeats: int,
    preset: Preset = PRESETS["fast"],
    headline: int = 8,
) -> list[Row]:
    """Measure the ascent and the bare network at some pool sizes.

    Args:
        model: The network.
        layer: Where it is cut.
        pool_sizes: Numbers of slots.
        steps: Steps of a repeat; a multiple of four, too few for an image to converge.
        repeats: Number of repeats.
        preset: How images are made.
        headline: The pool size whose rows belong into the short table.

    Returns:
        Gates and, for each pool size, both rates and their ratio.
    """
    side = preset.augmentation.canvas(preset.parametrization.size)
    subject = Subject(model, [layer], side)
    activation, gradient = differences(model, subject)
    what = "of the cut subject from the whole network, largest difference"
    rows = [
        gate(f"activations {what}", activation, ("<=", 1e-4), "of the largest"),
        gate(f"gradient to the image {what}", gradient, ("<=", 1e-3), "of the largest"),
    ]
    for size in pool_sizes:
        climb, refill = ascent(build_pool(subject, preset, size))
        passes = bare(subject, size)
        timed = take_turns(
            {
                "polylight": Competitor(partial(climb, steps), refill),
                _BARE: Competitor(partial(passes, steps)),
            },
            repeats,
            gates=rows[:2],
        )
        case = f"ascent of {model.name} to {layer}"
        rows += _rows(
            case, f"[{size}, 3, {side}, {side}]", timed, "headline" if size == headline else "table"
        )
    return rows


def _rows(case: str, shape: str, timed: dict[str, Timed], level: Level) -> list[Row]:
    ours, theirs = timed["polylight"], timed[_BARE]
    rows = [
        row(
            taken.rates,
            case=case,
            provider=name,
            shape=shape,
            unit="image-steps/s",
            failure=taken.failure,
            level=level,
        )
        for name, taken in timed.items()
    ]
    shares, failure = ratios(ours, theirs)
    share = row(
        shares,
        case=case,
        shape=shape,
        unit=f"of the {_BARE}",
        limit=(">=", 0.7),
        failure=failure,
        level=level,
    )
    return [*rows, share]


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    keep_freed_memory()
    pool_sizes = (4,) if quick else (4, 8, 16)
    steps, repeats = (4, 2) if quick else (16, 20)
    rows = compare(load_model("efficientnet_lite0"), "blocks.4", pool_sizes, steps, repeats)
    config = {"preset": "fast", "pool_sizes": list(pool_sizes), "steps": steps, "repeats": repeats}
    return rows, config


if __name__ == "__main__":
    sys.exit(measure("ascent", run, sys.argv[1:]))
