"""Finished neurons to rows: valid, clusters, scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from polylight.ascent.buffer import FinishedNeuron
from polylight.clustering import MOST_CLUSTERS, Backend, Clusters, Selection, cluster
from polylight.embedding.reference import Reference
from polylight.errors import InputError, check_choice
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
        check_choice("selection", self.selection, get_args(Selection))
        check_choice("clustering", self.backend, get_args(Backend))
        check_choice("reported_score", self.reported_score, get_args(ReportedScore))
        if not 1 <= self.max_clusters <= MOST_CLUSTERS or self.restarts < 1:
            raise InputError(
                f"max_clusters has to be from 1 to {MOST_CLUSTERS} and restarts at least 1, not "
                f"{self.max_clusters} and {self.restarts}."
            )

    def check(self, device: torch.device) -> None:
        """Cluster a few points: what is missing for that is said before any work.

        Raises:
            InputError: If what clusters is not installed, or cannot run on the device.
        """
        cluster(
            torch.eye(4, device=device)[None],
            valid=torch.ones(1, 4, dtype=torch.bool, device=device),
            keys=torch.zeros(1, dtype=torch.int64, device=device),
            k_max=self.max_clusters,
            restarts=1,
            backend=self.backend,
            kernels=self.kernels,
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
        columns = self.score(finished, reference, max_images=max_images, seed=seed)
        return [
            _row(neuron, scored, seed, seconds_per_step)
            for neuron, scored in zip(finished, columns, strict=True)
        ]

    def score(
        self,
        neurons: Sequence["Judged"],
        reference: Reference,
        *,
        max_images: int,
        seed: int,
        valid: Sequence[Tensor] | None = None,
    ) -> list[dict[str, Any]]:
        """Score neurons by what their images gave.

        Args:
            neurons: What their images gave, such as a :class:`FinishedNeuron` each; at least one.
            reference: As for :meth:`rows`, like the others.
            max_images: Likewise.
            seed: Likewise.
            valid: Of each neuron which images count, bool [N]; None for those that drive it.

        Returns:
            Of each neuron the columns of its row that its images decide.
        """
        raw = _padded([f.embeddings for f in neurons], max_images, 0.0)  # [U, N, D]
        activations = _padded([f.activations for f in neurons], max_images, torch.nan)
        inactive = _padded([f.inactive for f in neurons], max_images, True)
        baseline = activations.new_tensor([f.baseline for f in neurons])
        # One damaged value makes an image's view worthless, and would make its neuron's score NaN.
        intact = _padded([_is_intact(f) for f in neurons], max_images, False)
        finite = activations.isfinite() & intact
        counted = (
            strength_gate(activations, finite & ~inactive, baseline, self.strength)
            if valid is None
            else _padded(valid, max_images, False)
        )
        keys, half_keys = (
            torch.tensor([stream_key(seed, f.neuron, use) for f in neurons], device=raw.device)
            for use in ("cluster", "halves")
        )
        views = [reference.join(f.embeddings, f.layer_input) for f in neurons]
        directions = _padded(views, max_images, 0.0)
        score = polysemanticity_score(
            directions,
            activations,
            valid=counted,
            keys=keys,
            baseline=baseline,
            **self.clustering(),
        )
        # Halves are small, many, and made for "gram", whatever clusters the whole.
        doubt = score_uncertainty(
            directions,
            score,
            activations,
            valid=counted,
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
        return [_columns(neuron, score, numbers, index) for index, neuron in enumerate(neurons)]


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


class Judged(Protocol):
    """What the images of a neuron gave, on one device."""

    @property
    def neuron(self) -> object:
        """The neuron, or its text."""

    @property
    def embeddings(self) -> Tensor:
        """float32 [N, D], raw."""

    @property
    def layer_input(self) -> Tensor:
        """float32 [N, C], what its layer reads, in standard deviations."""

    @property
    def activations(self) -> Tensor:
        """float32 [N], NaN where an image became non-finite."""

    @property
    def baseline(self) -> float:
        """Mean activation of random images."""

    @property
    def inactive(self) -> Tensor:
        """Bool [N], where its rectifier gives zero everywhere."""


def _is_intact(judged: Judged) -> Tensor:
    """Whether all values that an image is compared by are finite, bool [N]."""
    return judged.embeddings.isfinite().all(1) & judged.layer_input.isfinite().all(1)


def _padded(values: Sequence[Tensor], length: int, fill: float | bool) -> Tensor:
    """Stack tensors [N, ...] of different N: [U, length, ...]."""
    padded = values[0].new_full((len(values), length, *values[0].shape[1:]), fill)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded


def _columns(
    judged: Judged, score: Score, numbers: Mapping[str, Tensor], index: int
) -> dict[str, Any]:
    """The columns that the images of a neuron decide."""
    count = len(judged.activations)
    scored = not bool(score.score[index].isnan())
    failed = not bool((judged.activations.isfinite() & _is_intact(judged)).any())
    k = int(score.k[index]) if scored else 0

    def number(name: str) -> float | None:
        value = numbers[name][index].item()
        return value if scored and value == value else None

    return {
        **{name: number(name) for name in numbers},
        "status": "ok" if scored else "failed" if failed else "dead",
        "k": k if scored else None,
        "bic": score.bic[index].numpy(),
        "label": score.labels[index, :count].int().numpy(),
        "cluster_weight": score.cluster_weights[index, :k].numpy(),
    }


def _row(
    finished: FinishedNeuron, scored: Mapping[str, Any], seed: int, seconds_per_step: float
) -> NeuronRow:
    neuron = finished.neuron
    return NeuronRow(
        **scored,
        neuron=str(neuron),
        layer=",".join(dict.fromkeys(component.layer for component in neuron.components)),
        channel=None if neuron.operation else neuron.components[0].channel,
        q_value=None,
        num_images=len(finished.images),
        stop_reason=finished.stop_reason,
        steps=finished.steps,
        activation=finished.activations.cpu().numpy(),
        baseline=finished.baseline,
        component=finished.component.int().cpu().numpy(),
        component_scale=np.array(finished.scales, dtype=np.float64),
        embedding=finished.embeddings.cpu().numpy(),
        layer_input=finished.layer_input.cpu().numpy(),
        image=encode_png(finished.pictures.permute(0, 2, 3, 1).cpu().numpy()),
        seed=seed,
        seconds=finished.steps * seconds_per_step,
    )
