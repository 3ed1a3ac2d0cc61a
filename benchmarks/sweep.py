"""Ascent by the size of the pool, the size of the images and the depth of the layer."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.ascent import ascent, bare, build_pool, differences
from benchmarks.common import Competitor, Row, gate, measure, ratios, row, take_turns
from polylight.ascent.allocator import keep_freed_memory
from polylight.ascent.presets import PRESETS, Preset
from polylight.networks import Model, load_model
from polylight.networks.subject import Subject

_BARE = "bare forward + backward"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the sweep.

    Attributes:
        axis: What is swept.
        layer: Where the network is cut.
        pool_size: Images that climb at once.
        image_size: Side of the images, pixels.
    """

    axis: str
    layer: str = "blocks.4"
    pool_size: int = 8
    image_size: int = 128


SETTINGS = (
    *(Setting(axis="pool size", pool_size=size) for size in (4, 8, 16, 32)),
    *(Setting(axis="image size", image_size=size) for size in (64, 96, 128, 192)),
    *(Setting(axis="depth", layer=f"blocks.{block}") for block in range(1, 7)),
)


def sized(preset: Preset, image_size: int) -> Preset:
    """The same preset with images of another size."""
    parametrization = dataclasses.replace(preset.parametrization, size=image_size)
    return dataclasses.replace(preset, parametrization=parametrization)


def sweep(
    model: Model, settings: Sequence[Setting], steps: int, repeats: int, preset: Preset
) -> list[Row]:
    """Measure the ascent and the bare network, setting by setting.

    Args:
        model: The network.
        settings: What to measure.
        steps: Steps of a repeat; a multiple of four, too few for an image to converge.
        repeats: Number of repeats.
        preset: How images are made, but for their size.

    Returns:
        For each setting two gates, both rates, and their ratio.
    """
    rows = []
    for setting in settings:
        rows += _measure(model, setting, steps, repeats, sized(preset, setting.image_size))
    return rows


def _measure(model: Model, setting: Setting, steps: int, repeats: int, preset: Preset) -> list[Row]:
    """The rows of one setting."""
    side = preset.parametrization.size
    size, layer = setting.pool_size, setting.layer
    subject = Subject(model, [layer], side)
    case, shape = f"{setting.axis}, ascent to {layer}", f"[{size}, 3, {side}, {side}]"
    activation, gradient = differences(model, subject)
    gates = [
        gate(f"{case}: activations of the cut subject", activation, ("<=", 1e-4), "apart", shape),
        gate(f"{case}: gradient of the cut subject", gradient, ("<=", 1e-5), "apart", shape),
    ]
    climb, refill = ascent(build_pool(subject, preset, size))
    timed = take_turns(
        {
            "polylight": Competitor(partial(climb, steps), refill),
            _BARE: Competitor(partial(bare(subject, size), steps)),
        },
        repeats,
        gates=gates,
    )
    rates = [
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
    shares, failure = ratios(timed["polylight"], timed[_BARE])
    share = row(shares, case=case, shape=shape, unit=f"of the {_BARE}", failure=failure)
    # A gate that is green says nothing new a dozen times.
    quiet = [dataclasses.replace(g, level="detail") for g in gates]
    return [*quiet, *rates, share]


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    keep_freed_memory()
    steps, repeats = (4, 2) if quick else (16, 8)
    settings = SETTINGS[:1] if quick else SETTINGS
    model = load_model("efficientnet_lite0")
    rows = sweep(model, settings, steps, repeats, PRESETS["fast"])
    return rows, {"preset": "fast", "steps": steps, "repeats": repeats}


if __name__ == "__main__":
    sys.exit(measure("sweep", run, sys.argv[1:]))
