"""Runs the engine over neurons of a tiny network."""

import functools

import torch

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.engine import Engine
from polylight.ascent.judge import Judge
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.parametrization import Parametrization
from polylight.ascent.pool import Pool
from polylight.ascent.scheduler import Rounds, Scheduler
from polylight.ascent.settings import Ascent
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.embedding.reference import Reference
from polylight.networks import list_layers, load_model
from polylight.networks.subject import Subject
from polylight.neurons import layers_of, parse_neurons
from polylight.reference import input_statistics, layer_statistics
from polylight.stopwatch import Stopwatch

AUGMENTATION = Augmentation(jitter=4)
SIZE = 32
# Short, with images that stop early, and with three rounds that repel each other.
ASCENT = Ascent(max_steps=20, explore=0.4, tolerance=0.05, patience=4, stride=4)
ROUNDS = Rounds(round_size=2, min_images=4, max_images=6, retries=3)


@functools.cache
def model(name):
    return load_model(name)


@functools.cache
def reference(subject="tiny:subject", size=SIZE):
    """A frame that needs no ascent: and the layers' statistics over noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, size, size), generator=generator, dtype=torch.uint8)
    canvas, cpu = size, torch.device("cpu")
    names = [layer.name for layer in list_layers(model(subject), canvas)]
    layers = [names[i % len(names)] for i in range(len(images))]
    statistics = layer_statistics(model(subject), images / 255, canvas, cpu)
    layer_input = input_statistics(model(subject), images / 255, layers, canvas, cpu)
    return Reference("noise", torch.randn(20, generator=generator) * 0.1, *statistics, *layer_input)


def engine(
    expressions,
    *,
    subject="tiny:subject",
    size=SIZE,
    pool_size=8,
    ascent=ASCENT,
    rounds=ROUNDS,
    parametrization=None,
    augmentation=AUGMENTATION,
    backwards=False,
    seed=0,
    lag=0,
    device="cpu",
    lpips=None,
    **pool_settings,
):
    """An engine over neurons, with what it needs to go on."""
    parametrization = parametrization or Parametrization(size=size)
    canvas = size
    cut = Subject(model(subject), layers_of(expressions), canvas)
    neurons = parse_neurons(expressions, cut.shapes)
    neurons = neurons[::-1] if backwards else neurons
    frame = reference(subject, size)
    mean, std = frame.layer_table(cut.layers)
    pool = Pool(
        cut,
        parametrization,
        augmentation,
        ascent,
        size=pool_size,
        num_components=max(len(n.components) for n in neurons),
        max_images=rounds.max_images,
        feature_start=mean,
        feature_std=std,
        **pool_settings,
    ).to(device)
    embedder = Embedder(model("tiny:embedder")).to(device)
    layer_input = LayerInput(model(subject), canvas).to(device)
    judge = Judge(pool, embedder, layer_input, frame.to(device), lpips)
    made = Engine(pool, Scheduler(rounds, pool_size), judge, seed, Stopwatch(), lag)
    return Driven(made, ImageAdam.of(pool), neurons)


class Driven:
    """An engine, the neurons that it draws, and the optimizer; else like the engine."""

    def __init__(self, made, optimizer, neurons):
        self.engine, self.optimizer, self.neurons = made, optimizer, neurons
        self._source = iter(neurons)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    @property
    def done(self):
        return self.counters.neurons == len(self.neurons)

    def turn(self, num_steps=4, optimizer=None):
        return self.engine.turn(self._source, num_steps, optimizer or self.optimizer)


def run(expressions, *, turn=4, **settings) -> dict[str, FinishedNeuron]:
    """Run neurons to their end; by their text."""
    made = engine(expressions, **settings)
    finished = {}
    while not made.done:
        for neuron in made.turn(turn):
            finished[str(neuron.neuron)] = neuron
    return finished


def assert_same(one: FinishedNeuron, other: FinishedNeuron):
    """The same bits, in all that is known of a neuron."""
    name = str(one.neuron)
    assert name == str(other.neuron)
    assert one.images.shape == other.images.shape, name
    changed = (one.images != other.images).flatten(1).any(1)
    assert not changed.any(), f"{name}: images {changed.nonzero().flatten().tolist()} differ"
    torch.testing.assert_close(one.embeddings, other.embeddings, rtol=0, atol=0)
    torch.testing.assert_close(one.layer_input, other.layer_input, rtol=0, atol=0)
    torch.testing.assert_close(one.activations, other.activations, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.inactive, other.inactive)
    assert (one.baseline, one.steps, one.stop_reason) == (
        other.baseline,
        other.steps,
        other.stop_reason,
    )
