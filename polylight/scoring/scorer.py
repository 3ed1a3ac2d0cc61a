"""Finished neurons to rows: valid, clusters, scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from polylight.ascent.buffer import FinishedNeuron
from polylight.clustering import Backend, Clusters, Selection, cluster
from polylight.embedding.reference import Reference
from polylight.errors import InputError, nearest
from polylight.kernels import Kernels, stream_key
from polylight.run.png import encode_png
from polylight.run.reported import ReportedScore
from polylight.run.schema import NeuronRow
from polylight.scoring import Score, paper_score, polysemanticity_score, strength_gate
from polylight.scoring.points import cluster_sums
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
        reported_score: The score that a run is sorted by and shown with. K, labels and weights of
            clusters are those of this score.
    """

    strength: float = 0.5
    max_clusters: int = 8
    restarts: int = 32
    selection: Selection = "bic"
    backend: Backend = "gram"
    kernels: Kernels = "auto"
    repelled: bool = False
    reported_score: ReportedScore = "score"

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(
                f"strength is a part of the median gain in (0, 1], not {self.strength}."
            )
        for name, value, known in (
            ("selection", self.selection, get_args(Selection)),
            ("clustering", self.backend, get_args(Backend)),
            ("reported_score", self.reported_score, get_args(ReportedScore)),
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
        # One damaged value makes an image's view worthless, and would make its neuron's score NaN.
        intact = _padded([_is_intact(f) for f in finished], max_images, False)
        finite = activations.isfinite() & intact
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
        # Alic et al. (2025) have neither reference nor gate.
        plain = cluster(
            raw,
            valid=finite,
            keys=keys,
            k_max=self.max_clusters,
            restarts=self.restarts,
            selection=self.selection,
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
        if self.reported_score == "score_paper":
            score = _with_clusters(score, plain, finite)
        score = Score(*(value.cpu() for value in score))
        return [
            _row(neuron, score, numbers, index, seed, seconds_per_step)
            for index, neuron in enumerate(finished)
        ]


def _with_clusters(score: Score, clusters: Clusters, images: Tensor) -> Score:
    """Put other clusters in place of those of a score; each weighs as many images as it has."""
    width = score.cluster_weights.shape[1]
    sizes = cluster_sums(images[..., None].double(), clusters.labels, width)[0].squeeze(-1)
    return score._replace(
        k=clusters.k,
        labels=clusters.labels,
        cluster_weights=sizes / images.sum(1, keepdim=True),
        bic=clusters.bic,
    )


def _is_intact(finished: FinishedNeuron) -> Tensor:
    """Whether all values that an image is compared by are finite, bool [N]."""
    return finished.embeddings.isfinite().all(1) & finished.layer_input.isfinite().all(1)


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
    failed = not bool((finished.activations.isfinite() & _is_intact(finished)).any())
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
        component_scale=np.array(finished.scales, dtype=np.float64),
        cluster_weight=score.cluster_weights[index, :k].numpy(),
        embedding=finished.embeddings.cpu().numpy(),
        layer_input=finished.layer_input.cpu().numpy(),
        image=encode_png(finished.images.permute(0, 2, 3, 1).cpu().numpy()),
        seed=seed,
        seconds=finished.steps * seconds_per_step,
    )
