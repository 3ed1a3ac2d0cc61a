"""The run as a LightningModule: wiring and nothing else."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.engine import Engine
from polylight.ascent.judge import Judge
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.pool import Pool
from polylight.ascent.pool_size import build_fitting, choose_pool_size
from polylight.ascent.precision import PrecisionChoice, resolve_precision
from polylight.ascent.presets import PRESETS
from polylight.ascent.scheduler import Rounds, Scheduler
from polylight.clustering import Backend, Selection
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.embedding.lpips import load_lpips
from polylight.embedding.reference import Reference
from polylight.errors import InputError, check_choice
from polylight.kernels import Kernels, resolve_kernels
from polylight.networks import Model
from polylight.networks.load import as_model
from polylight.networks.sizes import at_size, default_size
from polylight.networks.subject import Subject
from polylight.neurons import LayerShape, Neuron
from polylight.reference import ReferenceSettings, load_or_make_reference
from polylight.run.manifest import Manifest
from polylight.run.reported import ReportedScore
from polylight.run.schema import NeuronRow
from polylight.scoring.scorer import Scorer
from polylight.stopwatch import Stopwatch

# Counts up when the same settings come to give other images or scores: no run mixes two methods.
METHOD = 8


class PolysemanticityModule(LightningModule):
    """Scores how polysemantic neurons are.

    A ``training_step`` moves the pool on by ``steps_per_batch`` ascent steps, each one step of
    the optimizer, so ``trainer.global_step`` counts ascent steps. It draws neurons as there is
    room for them, and returns those that are finished.

    Args:
        subject: Network whose neurons are scored: ``efficientnet_lite0``, any classifier of
            torchvision, any model of timm, ``package.module:function`` and more, or from Python a
            :class:`polylight.networks.Model` (:func:`polylight.networks.load_model`).
        embedder: Network that embeds the images, likewise.
        subject_weights: ``pretrained``, ``random``, or the path of a checkpoint.
        embedder_weights: Likewise.
        subject_options: Of its constructor or function, such as ``{num_classes: 10}``.
        embedder_options: Likewise.
        preset: How images are made: ``fast``, ``lucid`` or ``distill``. The settings from here
            to ``repulsion`` are the preset's where they are null.
        image_size: Side of the images, pixels: what the subject is shown. Null for the preset's;
            the subject's own size where that is smaller, or the only one that it takes.
        parametrization: ``fourier`` or ``pixel``.
        sd: Contrast of the images that ascents start from: standard deviation of their latents.
        max_steps: Ascent steps of an image at the most.
        learning_rate: Adam's.
        patience: Steps without a rise after which an image has converged; 0 for never.
        explore: Part of the steps in which finished images of its neuron repel an image.
        repulsion: How strongly; 0 for independent images.
        round_size: Images of a round, which do not repel each other; more use a GPU better where
            there are fewer neurons than slots.
        min_images: Images of a neuron at least; null for ``max_images``. With fewer, the elbow
            decides how many a neuron gets.
        max_images: Images of a neuron at most.
        elbow: What images are compared by to find it: ``cosine``, as they are for the score, or
            ``lpips``, of AlexNet, whose weights are downloaded; without them it is ``cosine``.
        elbow_tolerance: Change of the images' mean similarity that counts as none.
        elbow_patience: Rounds without a change after which a neuron is finished.
        pool_size: Images that climb at once; null for what is measured to be fastest. One that
            does not fit into a GPU's memory is halved.
        precision: How the subject is computed while images climb: ``float32``, ``tf32``,
            ``bfloat16``, or ``auto`` for bfloat16 on a GPU and float32 elsewhere. Finished images
            are judged in float32.
        kernels: ``auto`` for the fast ones of the device, ``torch`` for their plain twins,
            ``triton``.
        cuda_graph: Whether a step on a GPU is captured once and replayed.
        steps_per_batch: Ascent steps of a ``training_step``.
        embedding: How images are compared: ``centred``, as two views by a reference; or ``plain``,
            by what the embedder's classifier reads and nothing else.
        reference_images: Images that the reference frame is made from.
        strength: An image is valid whose gain is at least this part of its neuron's median.
        max_clusters: Largest K that is tried.
        restarts: Starts of k-means for each K.
        selection: What chooses K: ``bic``, ``xmeans``, ``gmeans`` or ``sigclust``.
        clustering: ``gram``, ``faiss`` or ``cuml``.
        reported_score: What neurons are sorted by, and shown with: ``score``, or ``score_paper``,
            that of Alic et al. (2025).
        seed: Seed of the run.
    """

    def __init__(
        self,
        subject: str | Model = "efficientnet_lite0",
        embedder: str | Model = "efficientnet_lite2",
        subject_weights: str = "pretrained",
        embedder_weights: str = "pretrained",
        subject_options: dict[str, Any] | None = None,
        embedder_options: dict[str, Any] | None = None,
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
        min_images: int | None = None,
        max_images: int = 16,
        elbow: Literal["cosine", "lpips"] = "cosine",
        elbow_tolerance: float = 0.02,
        elbow_patience: int = 6,
        pool_size: int | None = None,
        precision: PrecisionChoice = "auto",
        kernels: Kernels = "auto",
        cuda_graph: bool = True,
        steps_per_batch: int = 4,
        embedding: Literal["centred", "plain"] = "centred",
        reference_images: int = 256,
        strength: float = 0.5,
        max_clusters: int = 8,
        restarts: int = 32,
        selection: Selection = "bic",
        clustering: Backend = "gram",
        reported_score: ReportedScore = "score",
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Of a network in memory its name; its weights are the manifest's.
        names = [m.name if isinstance(m, Model) else m for m in (subject, embedder)]
        self.save_hyperparameters(ignore=["subject", "embedder"])
        self.save_hyperparameters({"subject": names[0], "embedder": names[1]})
        self.automatic_optimization = False
        if steps_per_batch < 1 or (pool_size is not None and pool_size < 1):
            raise InputError(
                "steps_per_batch and pool_size have to be at least 1, not "
                f"{steps_per_batch} and {pool_size}."
            )
        check_choice("preset", preset, PRESETS)
        check_choice("elbow", elbow, ("cosine", "lpips"))
        check_choice("embedding", embedding, ("centred", "plain"))
        self.watch = Stopwatch()
        with self.watch("load"):
            model = as_model(subject, subject_weights, subject_options)
            usual = default_size(model, PRESETS[preset].parametrization.size)
            size = usual if image_size is None else image_size
            self.subject_model = at_size(model, size)
            self.embedder_model = as_model(embedder, embedder_weights, embedder_options)
        chosen = PRESETS[preset].override(
            size=size,
            channels=model.channels,
            window=model.window_at(size),
            kind=parametrization,
            sd=sd,
            max_steps=max_steps,
            learning_rate=learning_rate,
            patience=patience,
            explore=explore,
            repulsion=repulsion,
        )
        self.parametrization, self.ascent = chosen.parametrization, chosen.ascent
        self.augmentation = chosen.augmentation
        self.rounds = Rounds(
            round_size=round_size,
            min_images=max_images if min_images is None else min_images,
            max_images=max_images,
            tolerance=elbow_tolerance,
            patience=elbow_patience,
        )
        self.reference_settings = ReferenceSettings(
            num_images=reference_images,
            parametrization=self.parametrization,
            augmentation=Augmentation().at(size),
        )
        self.scorer = Scorer(
            strength=strength,
            max_clusters=max_clusters,
            restarts=restarts,
            selection=selection,
            backend=clustering,
            kernels=kernels,
            repelled=self.ascent.repulsion > 0 and self.ascent.explore_steps > 0,
            reported_score=reported_score,
        )
        self.is_plain = embedding == "plain"
        with self.watch("load"):
            uses_lpips = elbow == "lpips" and self.rounds.has_elbow
            self.lpips = load_lpips(size) if uses_lpips else None
        self.precision, self.kernels, self.cuda_graph = precision, kernels, cuda_graph
        self.pool_size, self.steps_per_batch, self.seed = pool_size, steps_per_batch, seed
        self.subject: Subject | None = None
        # In a tuple, as no part of the module: Lightning is not to touch them.
        self._views: tuple[Embedder, LayerInput | None] | None = None
        self.reference: Reference | None = None
        self.pool: Pool | None = None
        self.engine: Engine | None = None
        self._neurons: Iterator[Neuron] | None = None
        self._num_neurons = 0

    @property
    def needs_reference(self) -> bool:
        """Whether anything is centred or scaled by a reference: the views, or the repulsion."""
        return not self.is_plain or self.ascent.explore_steps > 0

    def manifest(self, device: torch.device) -> Manifest:
        """The record of a run of this module, with all that its results depend on.

        Args:
            device: Where the run will work.

        Raises:
            InputError: If the device does not know the precision, the kernels or what clusters.
        """
        # What is missing is said before any work starts. Kernels only change the last digits.
        resolve_kernels(self.kernels, device)
        self.scorer.check(device)
        reference = None
        if self.needs_reference:
            reference = self.reference_settings.key(self.subject_model, self.embedder_model)
        elbow = "cosine" if self.lpips is None else "lpips"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return Manifest(
            device={"name": name, "threads": torch.get_num_threads()},
            subject=self.subject_model.identity(),
            embedder=self.embedder_model.identity(),
            reference_hash=reference,
            dictionaries={} if self.subject is None else self.subject.dictionary_hashes(),
            seed=self.seed,
            settings={
                "method": METHOD,
                "parametrization": dataclasses.asdict(self.parametrization),
                "augmentation": dataclasses.asdict(self.augmentation),
                "ascent": dataclasses.asdict(self.ascent),
                "rounds": dataclasses.asdict(self.rounds),
                "elbow": elbow if self.rounds.has_elbow else None,
                "precision": resolve_precision(self.precision, device),
                "embedding": "plain" if self.is_plain else "centred",
                "reference": reference,
                "scoring": self.scorer.settings(),
            },
        )

    def cut(self, layers: Sequence[str]) -> dict[str, LayerShape]:
        """Cut the subject at the deepest of some layers, and build what its images are seen by.

        Args:
            layers: Names of layers.

        Returns:
            By name, what each layer offers to be chosen from.

        Raises:
            InputError: If the subject has no such layer, the images are too small for it, or the
                embedder cannot embed.
        """
        with self.watch("load"):
            self.subject = Subject(
                self.subject_model, layers, self.parametrization.size, self.kernels
            )
        return self.subject.shapes

    def resume(self, pool_size: int | None) -> None:
        """Go on with the pool size that an earlier session has measured, if none is given."""
        self.pool_size = self.pool_size or pool_size

    def build_views(self) -> tuple[Embedder, LayerInput | None]:
        """Build what images are compared by, once.

        Returns:
            What embeds them, and what shows them as a layer reads them; on the CPU. Where images
            are compared by plain embeddings, there is no second.

        Raises:
            InputError: If the embedder cannot embed.
        """
        if self._views is None:
            with self.watch("load"):
                embedder = Embedder(self.embedder_model, plain=self.is_plain)
                size = self.parametrization.size
                layer_input = None if self.is_plain else LayerInput(self.subject_model, size)
                self._views = embedder, layer_input
        return self._views

    def setup(self, stage: str) -> None:
        """Find the reference, and build the engine on the trainer's device."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        bar: Any = self.trainer.progress_bar_callback
        show = getattr(bar, "show_reference", lambda done, total: None)
        device = self.trainer.strategy.root_device
        self.prepare(data.pending, device, partial(load_or_make_reference, progress=show))

    def prepare(
        self,
        neurons: Sequence[Neuron],
        device: torch.device,
        find_reference: Callable[[Model, Model, ReferenceSettings, torch.device], Reference],
    ) -> None:
        """Find the reference, and build the engine.

        Args:
            neurons: What will be scored, from shallow to deep.
            device: Where to work.
            find_reference: Gives the reference of a subject and an embedder.
        """
        embedder, layer_input = self.build_views()
        embedder.to(device)
        with self.watch("reference"):
            reference = self._reference(embedder, device, find_reference)
        with self.watch("measure"):
            pool = self._make_pool(neurons, reference, device)
        self.reference = reference.to(device)
        lpips = None if self.lpips is None else self.lpips.to(device)
        layer_input = None if layer_input is None else layer_input.to(device)
        judge = Judge(pool, embedder, layer_input, self.reference, lpips)
        self._num_neurons = len(neurons)
        scheduler = Scheduler(self.rounds, pool.size)
        self.engine = Engine(pool, scheduler, judge, self.seed, self.watch)
        # Registered, so that Lightning knows its parameters.
        self.pool = pool

    def _reference(
        self,
        embedder: Embedder,
        device: torch.device,
        find_reference: Callable[[Model, Model, ReferenceSettings, torch.device], Reference],
    ) -> Reference:
        """Find the reference, as far as this run needs one."""
        if not self.needs_reference:
            side = self.parametrization.size
            dims = embedder(torch.zeros(1, 3, side, side, device=device)).shape[1]
            return Reference.neutral(dims, self.subject.layer_channels if self.subject else {})
        settings, models = self.reference_settings, (self.subject_model, self.embedder_model)
        reference = find_reference(*models, settings, device)
        return reference.uncentred() if self.is_plain else reference

    def _make_pool(
        self, neurons: Sequence[Neuron], reference: Reference, device: torch.device
    ) -> Pool:
        """Build the pool of the given size, or of the one that is fastest."""
        subject = self.subject
        if subject is None:
            raise RuntimeError("the subject has to be cut where the neurons are: call cut()")
        start, std = reference.layer_table(subject.layers)
        num_components = max(len(n.components) for n in neurons)

        def build(size: int) -> Pool:
            return Pool(
                subject,
                self.parametrization,
                self.augmentation,
                self.ascent,
                size=size,
                num_components=num_components,
                max_images=self.rounds.max_images,
                feature_start=start,
                feature_std=std,
                precision=resolve_precision(self.precision, device),
                kernels=self.kernels,
                cuda_graph=self.cuda_graph,
            ).to(device)

        deepest, most = neurons[-1], len(neurons) * self.rounds.round_size
        size = self.pool_size or choose_pool_size(build, deepest, most)
        return build_fitting(build, size, deepest)

    def training_step(
        self, dataloader_iter: Iterator[tuple[Neuron, int, int]]
    ) -> dict[str, list[FinishedNeuron]]:
        """Take one turn of the engine, which draws neurons as there is room for them.

        Args:
            dataloader_iter: The neurons of :class:`polylight.data.NeuronDataModule`, which
                Lightning hands on under this name. The loop ends when it is exhausted.

        Returns:
            ``finished``: the neurons that this turn has finished.
        """
        engine = self.engine
        if engine is None:
            raise RuntimeError("setup() builds the engine")
        optimizer: Any = self.optimizers()
        steps = self.steps_per_batch
        if self.trainer.max_steps >= 0:
            steps = min(steps, self.trainer.max_steps - self.trainer.global_step)
        if self._neurons is None:
            # As many as there are: to ask for one more is what ends the loop.
            drawn = itertools.islice(dataloader_iter, self._num_neurons)
            self._neurons = (neuron for neuron, _, _ in drawn)
        finished = engine.turn(self._neurons, steps, optimizer)
        if self.is_done:
            next(dataloader_iter, None)
        return {"finished": finished}

    def rows(self, finished: Sequence[FinishedNeuron]) -> list[NeuronRow]:
        """Score neurons that are finished.

        Args:
            finished: At least one.

        Returns:
            A row for each, in the same order.
        """
        if self.engine is None or self.reference is None:
            raise RuntimeError("neurons are scored while the run goes")
        return self.scorer.rows(
            finished,
            self.reference,
            max_images=self.rounds.max_images,
            seed=self.seed,
            seconds_per_step=self.watch.seconds["ascent"] / self.engine.counters.image_steps,
        )

    @property
    def is_done(self) -> bool:
        """Whether every neuron of the run is finished."""
        return self.engine is not None and self.engine.counters.neurons == self._num_neurons

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, whose state belongs to the images."""
        if self.pool is None:
            raise RuntimeError("setup() builds the pool")
        return ImageAdam.of(self.pool)

    def teardown(self, stage: str) -> None:
        """Give up what the ascent held: on a GPU, nearly all of the memory."""
        self.engine = self.pool = self._views = None
