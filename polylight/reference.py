"""Make, find and keep the reference of a subject and an embedder.

``python -m polylight.reference SUBJECT EMBEDDER`` rebuilds the one that is installed with
polylight for that pair.
"""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import gettempdir

import torch
from safetensors import SafetensorError
from torch import Tensor

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.engine import Engine
from polylight.ascent.judge import Judge
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.ascent.pool import Pool
from polylight.ascent.scheduler import Rounds, Scheduler
from polylight.ascent.settings import Ascent
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput, nearest_images
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.kernels import philox_uniform, stream_key, to_exact
from polylight.networks import Layer, Model, list_layers, load_model
from polylight.networks.subject import Subject
from polylight.neurons import Component, Neuron
from polylight.stopwatch import Stopwatch

_logger = logging.getLogger(__name__)
_INSTALLED = Path(__file__).parent / "references"
_SEED = 20251221
_POOL_SIZE = 8
# Bump where what is made changes in a way that its settings do not show.
_VERSION = 6
# Reference images that give the scale of what a layer reads: those of neurons about as deep.
_NEAREST = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """How a reference is made; all of it counts for its key.

    Attributes:
        num_images: Neurons that are sampled, one image each, > 1.
        parametrization: What the images are made from; that of the run.
        augmentation: How the images are moved about.
        ascent: How the images climb, each alone.
    """

    num_images: int = 256
    parametrization: Parametrization = dataclasses.field(default_factory=Parametrization)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    ascent: Ascent = dataclasses.field(
        default_factory=lambda: Ascent(max_steps=64, explore=0.0, repulsion=0.0)
    )

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise InputError(f"the reference needs at least 2 images, not {self.num_images}.")

    def key(self, subject: Model, embedder: Model) -> str:
        """Hash of what the reference depends on, 32 hex digits."""
        parts = {
            "version": _VERSION,
            "subject": [subject.weights_hash, subject.mean, subject.std],
            "embedder": [
                embedder.weights_hash,
                embedder.mean,
                embedder.std,
                embedder.input_size,
                embedder.window,
            ],
            "recipe": dataclasses.asdict(self),
        }
        # An option may change what a network computes and leave its weights.
        options = [subject.options, embedder.options]
        if any(options):
            parts["options"] = options
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def cache_dir() -> Path:
    """Where references are kept: ``$POLYLIGHT_CACHE``, or polylight under the user's cache.

    Without a home directory, a folder of the user among the system's temporary files.
    """
    given = os.environ.get("POLYLIGHT_CACHE")
    if given:
        return Path(given)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return Path(gettempdir(), f"polylight-{getattr(os, 'getuid', lambda: 'cache')()}")
    return Path(base) / "polylight"


def find_reference(
    subject: Model, embedder: Model, settings: ReferenceSettings
) -> Reference | None:
    """Load the reference of a pair where it is installed or cached.

    Args:
        subject: The network whose neurons are scored.
        embedder: The network that embeds their images.
        settings: How the reference is made.

    Returns:
        The reference, or None where it has not been made yet.
    """
    name = f"{settings.key(subject, embedder)}.safetensors"
    for directory in (_INSTALLED, cache_dir() / "references"):
        found = _load(directory / name)
        if found is not None:
            return found
    return None


def _load(path: Path) -> Reference | None:
    """Load a reference; None where there is none, or none that could be used."""
    try:
        if not path.is_file():
            return None
        found = Reference.load(path)
        wrong = found.key != path.stem
    # What a file that was cut short, or is of something else, gives.
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        _logger.warning("%s is no reference (%s): it is made anew", path, error)
        return None
    if wrong:
        _logger.warning("%s is the reference %s: it is made anew", path, found.key)
        return None
    return found


def _keep(made: Reference) -> None:
    """Keep a reference for later runs, where that can be done."""
    path = cache_dir() / "references" / f"{made.key}.safetensors"
    try:
        made.save(path)
    except OSError as error:
        _logger.warning(
            "the reference frame cannot be kept as %s (%s): the next run makes it again; name a "
            "folder that can be written in the environment, POLYLIGHT_CACHE",
            path,
            error.strerror or error,
        )


def make_reference(
    subject: Model,
    embedder: Model,
    settings: ReferenceSettings,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """Make images of a fixed random sample of a subject's neurons, and take their mean.

    The sample is even over the subject's convolution and linear layers, whatever their width.
    Each neuron gets one image, without repulsion.

    Args:
        subject: The network whose neurons are scored.
        embedder: The network that embeds their images.
        settings: How the reference is made.
        device: Where to work.
        progress: Told the images done and those in all, now and then.

    Returns:
        The reference, on the CPU.
    """
    size = settings.parametrization.size
    found = list_layers(subject, size)
    known = Subject(subject, [layer.name for layer in found], size, climbed=False).climbable()
    neurons = sample_neurons([x for x in found if x.name in known], settings.num_images)
    layers = list(dict.fromkeys(n.components[0].layer for n in neurons))
    rounds = Rounds(round_size=1, min_images=1, max_images=1)
    scheduler = Scheduler(rounds, _POOL_SIZE)
    cut = Subject(subject, layers, size)
    width = max(cut.channels)
    pool = Pool(
        cut,
        settings.parametrization,
        settings.augmentation,
        settings.ascent,
        size=_POOL_SIZE,
        num_components=1,
        max_images=1,
        feature_start=torch.zeros(len(layers), width),
        feature_std=torch.ones(len(layers), width),
    ).to(device)
    optimizer = ImageAdam.of(pool)
    judge = Judge(pool, Embedder(embedder).to(device), None, None)
    engine = Engine(pool, scheduler, judge, _SEED, Stopwatch())
    made: dict[Neuron, FinishedNeuron] = {}
    for finished in engine.run(neurons, settings.ascent.stride, optimizer):
        made[finished.neuron] = finished
        progress(len(made), len(neurons))
    # Neurons finish in an order that the pool decides; the sums below must not depend on it.
    images = torch.cat([made[n].images for n in neurons])
    points = torch.cat([made[n].embeddings for n in neurons]).cpu().double()
    _, layer_std = layer_statistics(subject, images / 255.0, size, device)
    layer_start, _ = layer_statistics(subject, _start_images(settings), size, device)
    depths = [n.components[0].layer for n in neurons]
    input_mean, input_std = input_statistics(subject, images / 255.0, depths, size, device)
    return Reference(
        settings.key(subject, embedder),
        points.mean(0).float(),
        layer_start,
        layer_std,
        input_mean,
        input_std,
    )


def sample_neurons(layers: list[Layer], count: int) -> list[Neuron]:
    """Sample channels evenly over the convolution and linear layers, in the order of execution.

    Args:
        layers: The layers of a subject.
        count: Neurons to sample.

    Returns:
        ``count`` neurons, fewer where two draws are the same.
    """
    weighted = [layer for layer in layers if "Conv" in layer.kind or layer.kind == "Linear"]
    position = torch.arange(count) * len(weighted) // count
    draw = philox_uniform(torch.tensor([_SEED]), torch.tensor([0]), count)[0]
    neurons = []
    for place, u in zip(position.tolist(), draw.tolist(), strict=True):
        layer = weighted[place]
        neurons.append(
            Neuron((Component(layer.name, min(int(u * layer.channels), layer.channels - 1)),))
        )
    return list(dict.fromkeys(neurons))


@torch.no_grad()
def _start_images(settings: ReferenceSettings) -> Tensor:
    """Random images that ascents could start from, as many as are made: [N, C, H, W] in [0, 1]."""
    keys = torch.tensor([stream_key(_SEED, "start", i) for i in range(settings.num_images)])
    images: Tensor = ImageDecoder(settings.parametrization)(
        settings.parametrization.initial_latents(keys)
    )
    return images


@torch.no_grad()
def layer_statistics(
    subject: Model, images: Tensor, size: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and deviation of the pooled activations of every layer over some images.

    Args:
        subject: The network.
        images: float32 [N, C, size, size] in [0, 1].
        size: Side of the images, in pixels.
        device: Where to work.

    Returns:
        Two dictionaries by layer name of float32 [C], on the CPU, of the finite values; deviations
        are kept from zero.
    """
    names = [layer.name for layer in list_layers(subject, size)]
    cut = Subject(subject, names, size, climbed=False).to(device)
    pooled: list[list[Tensor]] = [[] for _ in names]
    for batch in torch.split(images.to(device), 16):
        for index, activation in cut(batch).items():
            pooled[index].append(activation.pooled())
    found = {n: _mean_and_deviation(torch.cat(v)) for n, v in zip(names, pooled, strict=True)}
    return {n: mean for n, (mean, _) in found.items()}, {n: std for n, (_, std) in found.items()}


def input_statistics(
    subject: Model, images: Tensor, layers: Sequence[str], size: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and deviation of what every convolution and linear layer reads, over images near it.

    Args:
        subject: The network.
        images: float32 [N, C, size, size] in [0, 1].
        layers: Layer of the neuron that each of them is of.
        size: Side of the images, in pixels.
        device: Where to work.

    Returns:
        As :func:`layer_statistics`, by the name of what reads, none that reads the image.
    """
    layer_input = LayerInput(subject, size).to(device)
    sources = list(layer_input.calls)
    batches = [layer_input.pooled(batch, sources) for batch in torch.split(images.to(device), 16)]
    nearest = nearest_images(layer_input, layers, _NEAREST)
    means, deviations = {}, {}
    for name in sources:
        values = torch.cat([batch[name].cpu() for batch in batches])
        means[name], deviations[name] = _mean_and_deviation(values[nearest[name]])
    return means, deviations


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of the finite among values [N, C], float32 [C] each, deviations kept from zero."""
    values = to_exact(values).cpu()
    finite = values.isfinite()
    count = finite.sum(0)
    mean = torch.where(finite, values, 0).sum(0) / count.clamp_min(1)
    square = torch.where(finite, values - mean, 0).square().sum(0)
    deviation = (square / (count - 1).clamp_min(1)).sqrt()
    # A channel that never moves must not rule the cosine of z-scores.
    floor = 0.01 * deviation.max().clamp_min(1e-6)
    return mean.float(), deviation.clamp_min(floor).float()


def load_or_make_reference(
    subject: Model,
    embedder: Model,
    settings: ReferenceSettings,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """Find the reference of a pair, or make it and keep it: see :func:`make_reference`."""
    found = find_reference(subject, embedder, settings)
    if found is not None:
        return found
    _logger.info(
        "making the reference frame of %s seen by %s: %d images, once",
        subject.name,
        embedder.name,
        settings.num_images,
    )
    made = make_reference(subject, embedder, settings, device, progress)
    _keep(made)
    return made


def _main(subject: str = "efficientnet_lite0", embedder: str = "efficientnet_lite2") -> None:
    """Rebuild an installed reference."""
    settings, device = (
        ReferenceSettings(),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )

    def progress(done: int, total: int) -> None:
        sys.stderr.write(f"\r{done}/{total} images")

    made = make_reference(load_model(subject), load_model(embedder), settings, device, progress)
    path = _INSTALLED / f"{made.key}.safetensors"
    made.save(path)
    sys.stderr.write(f"\r{path}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
