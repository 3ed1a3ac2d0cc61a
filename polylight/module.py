"""The run as a LightningModule: wiring and nothing else."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule

from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.engine import Engine
from polylight.ascent.pool import Pool
from polylight.ascent.pool_size import build_fitting, choose_pool_size
from polylight.ascent.precision import PrecisionChoice, resolve_precision
from polylight.ascent.presets import PRESETS
from polylight.ascent.scheduler import Rounds, Scheduler
from polylight.clustering import Backend, Selection
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.embedding.reference import Reference
from polylight.errors import InputError, nearest
from polylight.kernels.choice import Kernels, resolve_kernels
from polylight.networks import load_model
from polylight.networks.subject import Subject
from polylight.neurons import LayerShape, Neuron, layers_of, parse_neurons
from polylight.reference import Recipe, load_or_make_reference
from polylight.run.schema import NeuronRow
from polylight.scoring.scorer import RowMaker, Scorer
from polylight.stopwatch import Stopwatch

# Counts up when the same settings come to give other images or scores: no run mixes two methods.
METHOD = 6


class PolysemanticityModule(LightningModule):
    """Scores how polysemantic neurons are.

    A ``training_step`` moves the pool on by ``steps_per_batch`` ascent steps, each one step of
    the optimizer, so ``trainer.global_step`` counts ascent steps. The loop ends when every neuron
    is through.

    Args:
        subject: Network whose neurons are scored: ``efficientnet_lite0``, any classifier of
            torchvision, any model of timm, or ``package.module:function``.
        embedder: Network that embeds the images, likewise.
        subject_weights: ``pretrained``, ``random``, or the path of a checkpoint.
        embedder_weights: Likewise.
        preset: How images are made: ``fast``, ``lucid`` or ``distill``. The settings from here
            to ``repulsion`` are the preset's where they are null.
        image_size: Side of the images, pixels.
        parametrization: ``fourier`` or ``pixel``.
        sd: Contrast of the images that ascents start from: standard deviation of their latents.
        max_steps: Ascent steps of an image at the most.
        learning_rate: Adam's.
        patience: Steps without a rise after which an image has converged; 0 for never.
        explore: Part of the steps in which finished images of its neuron repel an image.
        repulsion: How strongly; 0 for independent images.
        round_size: Images of a round, which do not repel each other; more use a GPU better where
            there are fewer neurons than slots.
        min_images: Images of a neuron at least.
        max_images: Images of a neuron at the most.
        elbow_tolerance: Change of the images' mean similarity that counts as none.
        elbow_patience: Rounds without a change after which a neuron is through.
        pool_size: Images that climb at once; null for what is measured to be fastest. One that
            does not fit into a GPU's memory is halved.
        precision: How the subject is computed while images climb: ``float32``, ``tf32``,
            ``bfloat16``, or ``auto`` for bfloat16 on a GPU and float32 elsewhere. Finished images
            are judged in float32.
        kernels: ``auto`` for the fast ones of the device, ``torch`` for their plain twins,
            ``triton``.
        cuda_graph: Whether a step on a GPU is captured once and replayed.
        steps_per_batch: Ascent steps of a ``training_step``.
        reference_images: Images that the reference frame is made from.
        strength: An image whose gain is below this part of its neuron's median is not valid.
        max_clusters: Largest K that is tried.
        restarts: Starts of k-means for each K.
        selection: What chooses K: ``bic``, ``xmeans``, ``gmeans`` or ``sigclust``.
        clustering: ``gram``, ``faiss`` or ``cuml``.
        seed: Seed of the run.
    """

    def __init__(
        self,
        subject: str = "efficientnet_lite0",
        embedder: str = "efficientnet_lite2",
        subject_weights: str = "pretrained",
        embedder_weights: str = "pretrained",
        preset: str = "fast",
        image_size: int | None = None,
        parametrization: Literal["fourier", "pixel"] | None = None,
        sd: float | None = None,
        max_steps: int | None = None,
        learning_rate: float | None = None,
        patience: int | None = None,
        explore: float | None = None,
        repulsion: float | None = None,
        round_size: int = 1,
        min_images: int = 12,
        max_images: int = 32,
        elbow_tolerance: float = 0.02,
        elbow_patience: int = 6,
        pool_size: int | None = None,
        precision: PrecisionChoice = "auto",
        kernels: Kernels = "auto",
        cuda_graph: bool = True,
        steps_per_batch: int = 4,
        reference_images: int = 256,
        strength: float = 0.5,
        max_clusters: int = 8,
        restarts: int = 32,
        selection: Selection = "bic",
        clustering: Backend = "gram",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        if preset not in PRESETS:
            raise InputError(f"preset '{preset}' does not exist; {nearest(preset, PRESETS)}.")
        if steps_per_batch < 1 or (pool_size is not None and pool_size < 1):
            raise InputError(
                "steps_per_batch and pool_size have to be at least 1, not "
                f"{steps_per_batch} and {pool_size}."
            )
        chosen = PRESETS[preset]
        self.parametrization = _override(
            chosen.parametrization, kind=parametrization, size=image_size, sd=sd
        )
        self.augmentation = chosen.augmentation
        self.ascent = _override(
            chosen.ascent,
            max_steps=max_steps,
            learning_rate=learning_rate,
            patience=patience,
            explore=explore,
            repulsion=repulsion,
        )
        self.rounds = Rounds(
            round_size=round_size,
            min_images=min(min_images, max_images),
            max_images=max_images,
            tolerance=elbow_tolerance,
            patience=elbow_patience,
        )
        self.recipe = Recipe(num_images=reference_images, parametrization=self.parametrization)
        self.scorer = Scorer(
            strength=strength,
            max_clusters=max_clusters,
            restarts=restarts,
            selection=selection,
            backend=clustering,
            kernels=kernels,
            repelled=self.ascent.repulsion > 0 and self.ascent.explore_steps > 0,
        )
        self.precision, self.kernels, self.cuda_graph = precision, kernels, cuda_graph
        self.pool_size, self.steps_per_batch, self.seed = pool_size, steps_per_batch, seed
        self.rows = RowMaker(self._score, threaded=False)
        """The rows of neurons that are through."""
        self.earlier_pool_size: int | None = None
        """What an earlier session of the run has measured."""
        self.watch = Stopwatch()
        with self.watch("load"):
            self.subject_model = load_model(subject, subject_weights)
            self.embedder_model = load_model(embedder, embedder_weights)
        self.subject: Subject | None = None
        self.pool: Pool | None = None
        self.engine: Engine | None = None
        self.reference: Reference | None = None
        self.on_reference: Callable[[int, int], None] = lambda done, total: None

    @property
    def canvas(self) -> int:
        """Side in pixels of what the subject sees."""
        return self.augmentation.canvas(self.parametrization.size)

    def settings(self, device: torch.device) -> dict[str, Any]:
        """All that results depend on besides the models and the seed, as JSON values.

        Raises:
            InputError: If the device does not know the precision or the kernels.
        """
        # What is missing is said before any work starts. Kernels only change the last digits.
        resolve_kernels(self.kernels, device)
        return {
            "method": METHOD,
            "parametrization": dataclasses.asdict(self.parametrization),
            "augmentation": dataclasses.asdict(self.augmentation),
            "ascent": dataclasses.asdict(self.ascent),
            "rounds": dataclasses.asdict(self.rounds),
            "precision": resolve_precision(self.precision, device),
            "reference": self.recipe.key(self.subject_model, self.embedder_model),
            "scoring": self.scorer.settings(),
        }

    def how(self) -> dict[str, Any]:
        """How the run is computed, which changes no more than the last digits; for its record."""
        if self.pool is None:
            return {}
        return {"pool_size": self.pool.size, "kernels": self.pool.backend}

    def resolve(self, expressions: list[str]) -> list[Neuron]:
        """Cut the subject where neuron expressions need it, and expand them.

        Args:
            expressions: Neuron expressions.

        Returns:
            The neurons, the deepest layer's last: neurons of a layer share the depth that a
            forward has to go to.

        Raises:
            InputError: If an expression is malformed or names what the subject does not have.
        """
        layers = layers_of(expressions)
        with self.watch("load"):
            self.subject = Subject(self.subject_model, layers, self.canvas, self.kernels)
        shapes = map(LayerShape, self.subject.channels, self.subject.sizes)
        neurons = parse_neurons(expressions, dict(zip(layers, shapes, strict=True)))
        depth = dict(zip(layers, self.subject.depths, strict=True))
        return sorted(neurons, key=lambda n: max(depth[p.layer] for p in n.components))

    def setup(self, stage: str) -> None:
        """Make the queue, find the reference and build the pool."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        device = self.trainer.strategy.root_device
        with self.watch("load"):
            embedder = Embedder(self.embedder_model)
        if self.subject is None or not data.pending:
            self.pool, data.queue = None, Scheduler([], self.rounds, 1)
            return
        with self.watch("reference"):
            self.reference = load_or_make_reference(
                self.subject_model, self.embedder_model, self.recipe, device, self.on_reference
            )
        with self.watch("measure"):
            self.pool = self.make_pool(data.pending, device)
        data.queue = Scheduler(data.pending, self.rounds, self.pool.size)
        frame = self.reference.to(device)
        below = LayerInput(self.subject_model, self.canvas).to(device)
        self.engine = Engine(
            self.pool, data.queue, embedder.to(device), below, frame, self.seed, self.watch
        )
        self.rows = RowMaker(self._score, threaded=device.type == "cuda")

    def make_pool(self, neurons: Sequence[Neuron], device: torch.device) -> Pool:
        """Build the pool of the given size, or of the one that is fastest.

        Args:
            neurons: What it is for, the deepest last.
            device: Where to build it.

        Returns:
            An empty pool, its optimizer not made yet.
        """
        subject, reference = self.subject, self.reference
        if subject is None or reference is None:
            raise RuntimeError("the pool needs the subject and the reference frame")
        start, std = reference.layer_table(subject.layers)
        components = max(len(n.components) for n in neurons)

        def build(size: int) -> Pool:
            return Pool(
                subject,
                self.parametrization,
                self.augmentation,
                self.ascent,
                size=size,
                num_components=components,
                max_images=self.rounds.max_images,
                feature_start=start,
                feature_std=std,
                precision=resolve_precision(self.precision, device),
                kernels=self.kernels,
                cuda_graph=self.cuda_graph,
            ).to(device)

        deepest, most = neurons[-1], len(neurons) * self.rounds.round_size
        size = self.pool_size or self.earlier_pool_size
        return build_fitting(build, size or choose_pool_size(build, deepest, most), deepest)

    def training_step(self, batch: int, batch_idx: int) -> dict[str, Any]:
        """Take one turn of the engine; score the neurons that came through."""
        if self.engine is None:
            return {"rows": []}
        optimizer: Any = self.optimizers()
        left = self.trainer.max_steps - self.trainer.global_step
        steps = (
            self.steps_per_batch if self.trainer.max_steps < 0 else min(self.steps_per_batch, left)
        )
        finished = self.engine.turn(steps, optimizer.step)
        with self.watch("cluster"):
            if finished:
                self.rows.add(finished)
            return {"rows": self.rows.take(wait=self.engine.queue.drained)}

    def _score(self, finished: Sequence[FinishedNeuron]) -> list[NeuronRow]:
        engine = self.engine
        if engine is None or engine.reference is None:
            raise RuntimeError("scores need the reference frame")
        return self.scorer.rows(
            finished,
            engine.reference,
            max_images=self.rounds.max_images,
            seed=self.seed,
            seconds_per_step=self.watch.seconds["ascent"] / max(engine.image_steps, 1),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """The pool's own Adam, whose state belongs to the slots."""
        return self.pool.configure_optimizer() if self.pool else None


def _override(settings: Any, **given: Any) -> Any:
    """The same settings with those that are given, not None, instead."""
    return dataclasses.replace(settings, **{k: v for k, v in given.items() if v is not None})
