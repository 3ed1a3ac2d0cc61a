"""Finished neurons to rows: valid, clusters, scores."""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from polylight.ascent.buffer import FinishedNeuron
from polylight.clustering import Backend, Selection, cluster
from polylight.embedding.reference import Reference
from polylight.errors import InputError, nearest
from polylight.kernels import stream_key
from polylight.kernels.choice import Kernels
from polylight.run.png import encode_png
from polylight.run.schema import NeuronRow
from polylight.scoring import Score, paper_score, polysemanticity_score, strength_gate
from polylight.scoring.uncertainty import coverage, score_uncertainty


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """How finished images become a score.

    Attributes:
        strength: An image whose gain is below this part of its neuron's median is not valid.
        max_clusters: Largest K that is tried.
        restarts: Starts of k-means for each K.
        selection: What chooses K: ``bic``, ``xmeans``, ``gmeans`` or ``sigclust``.
        backend: What clusters: ``gram``, ``faiss`` or ``cuml``.
        kernels: Which implementation of ``gram`` runs.
        repelled: Whether a neuron's images repel each other while they are made: their scores then
            vary less than those of independent ones.
    """

    strength: float = 0.5
    max_clusters: int = 8
    restarts: int = 32
    selection: Selection = "bic"
    backend: Backend = "gram"
    kernels: Kernels = "auto"
    repelled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(
                f"strength is a part of the median gain in (0, 1], not {self.strength}."
            )
        for name, value, known in (
            ("selection", self.selection, get_args(Selection)),
            ("clustering", self.backend, get_args(Backend)),
        ):
            if value not in known:
                raise InputError(f"{name} '{value}' does not exist; {nearest(value, known)}.")
        if self.max_clusters < 1 or self.restarts < 1:
            raise InputError(
                "max_clusters and restarts have to be at least 1, not "
                f"{self.max_clusters} and {self.restarts}."
            )

    def settings(self) -> dict[str, Any]:
        """What scores depend on, as JSON values; kernels only change the last digits."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "kernels"}

    def clustering(self) -> dict[str, Any]:
        """What :func:`polylight.scoring.polysemanticity_score` takes of these settings."""
        return {
            "k_max": self.max_clusters,
            "restarts": self.restarts,
            "selection": self.selection,
            "backend": self.backend,
            "kernels": self.kernels,
        }

    def rows(
        self,
        finished: Sequence[FinishedNeuron],
        reference: Reference,
        *,
        max_images: int,
        seed: int,
        seconds_per_step: float,
    ) -> list[NeuronRow]:
        """Score neurons, all at once on the device that their images are on.

        Args:
            finished: The neurons, at least one.
            reference: What they are compared by, on the same device.
            max_images: Images that a neuron may have; the batch is padded to it, so that its
                arithmetic does not depend on the batch.
            seed: Seed of the run.
            seconds_per_step: What an ascent step of one image has cost.

        Returns:
            A row for each neuron, in the same order.
        """
        raw = _padded([f.embeddings for f in finished], max_images, 0.0)  # [U, N, D]
        activations = _padded([f.activations for f in finished], max_images, torch.nan)
        inactive = _padded([f.inactive for f in finished], max_images, True)
        baseline = activations.new_tensor([f.baseline for f in finished])
        finite = activations.isfinite()
        valid = strength_gate(activations, finite & ~inactive, baseline, self.strength)
        keys, half_keys = (
            torch.tensor([stream_key(seed, f.neuron, use) for f in finished], device=raw.device)
            for use in ("cluster", "halves")
        )
        views = [reference.join(f.embeddings, f.layer_input) for f in finished]
        directions = _padded(views, max_images, 0.0)
        score = polysemanticity_score(
            directions,
            activations,
            valid=valid,
            keys=keys,
            baseline=baseline,
            **self.clustering(),
        )
        # Halves are small, many, and made for "gram", whatever clusters the whole.
        doubt = score_uncertainty(
            directions,
            score,
            activations,
            valid=valid,
            keys=half_keys,
            baseline=baseline,
            k_max=self.max_clusters,
            selection=self.selection,
            kernels=self.kernels,
            repelled=self.repelled,
        )
        # The original method knows neither frame nor gate.
        plain = cluster(
            raw,
            valid=finite,
            keys=keys,
            k_max=self.max_clusters,
            restarts=self.restarts,
            backend=self.backend,
            kernels=self.kernels,
        )
        numbers = {
            "score": score.score,
            "score_low": doubt.low,
            "score_high": doubt.high,
            "separation": score.separation,
            "p_value": score.p_value,
            "k_stability": doubt.k_stability,
            "coverage": coverage(score.labels),
            "k_eff": score.k_eff,
            "score_paper": paper_score(raw, plain.labels, plain.k, finite),
        }
        numbers = {name: value.cpu() for name, value in numbers.items()}
        score = Score(*(value.cpu() for value in score))
        return [
            _row(neuron, score, numbers, index, seed, seconds_per_step)
            for index, neuron in enumerate(finished)
        ]


class RowMaker:
    """Makes rows of finished neurons: at once, or in a thread while the device climbs on.

    Args:
        make: Scores neurons.
        threaded: Whether a thread does it; worth it where the work is not the CPU's.
    """

    def __init__(
        self, make: Callable[[Sequence[FinishedNeuron]], list[NeuronRow]], *, threaded: bool
    ) -> None:
        self._make, self._made = make, deque[Future[list[NeuronRow]]]()
        self._thread = ThreadPoolExecutor(1, "polylight-rows") if threaded else None

    def add(self, finished: Sequence[FinishedNeuron]) -> None:
        """Take neurons on."""
        if self._thread is not None:
            self._made.append(self._thread.submit(self._make, finished))
            return
        future: Future[list[NeuronRow]] = Future()
        future.set_result(self._make(finished))
        self._made.append(future)

    def take(self, *, wait: bool) -> list[NeuronRow]:
        """Hand out rows that nobody has had, in the order of their neurons.

        Args:
            wait: Whether for all of the neurons taken on, or only those that are ready.

        Returns:
            The rows. What went wrong while they were made is raised here.
        """
        rows: list[NeuronRow] = []
        while self._made and (wait or self._made[0].done()):
            rows += self._made.popleft().result()
        return rows


def _padded(values: Sequence[Tensor], length: int, fill: float | bool) -> Tensor:
    """Stack tensors [N, ...] of different N: [U, length, ...]."""
    padded = values[0].new_full((len(values), length, *values[0].shape[1:]), fill)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded


def _row(
    finished: FinishedNeuron,
    score: Score,
    numbers: Mapping[str, Tensor],
    index: int,
    seed: int,
    seconds_per_step: float,
) -> NeuronRow:
    neuron, count = finished.neuron, len(finished.images)
    scored = not bool(score.score[index].isnan())
    failed = not bool(finished.activations.isfinite().any())
    k = int(score.k[index]) if scored else 0

    def number(name: str) -> float | None:
        value = numbers[name][index].item()
        return value if scored and value == value else None

    return NeuronRow(
        neuron=str(neuron),
        layer=",".join(dict.fromkeys(component.layer for component in neuron.components)),
        channel=None if neuron.operation else neuron.components[0].channel,
        status="ok" if scored else "failed" if failed else "dead",
        score=number("score"),
        score_low=number("score_low"),
        score_high=number("score_high"),
        separation=number("separation"),
        p_value=number("p_value"),
        q_value=None,
        k=k if scored else None,
        k_stability=number("k_stability"),
        coverage=number("coverage"),
        k_eff=number("k_eff"),
        score_paper=number("score_paper"),
        num_images=count,
        stop_reason=finished.stop_reason,
        steps=finished.steps,
        bic=score.bic[index].numpy(),
        label=score.labels[index, :count].int().numpy(),
        activation=finished.activations.cpu().numpy(),
        baseline=finished.baseline,
        component=finished.component.int().cpu().numpy(),
        cluster_weight=score.cluster_weights[index, :k].numpy(),
        embedding=finished.embeddings.cpu().numpy(),
        layer_input=finished.layer_input.cpu().numpy(),
        image=encode_png(finished.images.permute(0, 2, 3, 1).cpu().numpy()),
        seed=seed,
        seconds=finished.steps * seconds_per_step,
    )
