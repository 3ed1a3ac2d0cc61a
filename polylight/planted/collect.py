"""What came of planted neurons: every score of a run, and of some of its images scored anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.kernels import stream_key
from polylight.networks import Model
from polylight.neurons import Neuron
from polylight.planted.neurons import PlantedNeuron
from polylight.planted.outcome import POOLED, PRIMARY, VIEWS, Outcome
from polylight.planted.plan import LayerPlan
from polylight.run.png import decode_images
from polylight.run.schema import NeuronRow
from polylight.scoring import Score, polysemanticity_score, score_table
from polylight.scoring.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Run:
    """Planted neurons of a subject under one condition with one seed.

    Attributes:
        subject: Name of the subject.
        condition: Name of the condition.
        seed: Seed of the run.
        directory: Where it goes; one that is there already is continued.
        neurons: The neurons as text.
        arguments: Of the module, all but the seed.
        reference: What its images are compared by.
        scorer: How its images become a score.
        layers: What is planted in the subject.
        screened: By component as text, whether an independent measure put it among the more
            monosemantic half of its layer; the channels of a layer of classes need none.
    """

    subject: str
    condition: str
    seed: int
    directory: Path
    neurons: Sequence[str]
    arguments: Mapping[str, Any]
    reference: Reference
    scorer: Scorer
    layers: Sequence[LayerPlan]
    screened: Mapping[str, bool]


def run_outcomes(run: Run, rows: Sequence[NeuronRow]) -> list[Outcome]:
    """Collect every score of the planted neurons that are among some rows.

    Args:
        run: The run.
        rows: Its rows.

    Returns:
        An outcome for each planted neuron that has a row.
    """
    outcomes = []
    for plan in run.layers:
        found = _planted_rows(run, plan, rows)
        table = _score_table([row for _, row in found], run) if found else {}
        for index, (known, row) in enumerate(found):
            scores = {name: values[index].item() for name, values in table.items()}
            # What the run itself has found, not what the same clusters give again.
            stored = {PRIMARY: row.score, "paper": row.score_paper}
            scores |= {name: value for name, value in stored.items() if value is not None}
            outcomes.append(
                Outcome(
                    **known,
                    condition=run.condition,
                    status=row.status,
                    scores={name: value for name, value in scores.items() if np.isfinite(value)},
                    label=row.label.tolist(),
                    component=row.component.tolist(),
                    activation=row.activation.tolist(),
                    k=row.k or 0,
                    score_low=row.score_low,
                    score_high=row.score_high,
                )
            )
    return outcomes


def first_outcomes(run: Run, rows: Sequence[NeuronRow], count: int) -> list[Outcome]:
    """Score the first images of every neuron alone, to see what more of them are worth.

    Images are made one after the other, so these are what a run of fewer would have made.

    Args:
        run: The run.
        rows: Its rows.
        count: How many images of each, > 0.

    Returns:
        Outcomes of condition ``first <count>``, for planted neurons that have as many.
    """
    return [
        _rescored(run, known, f"first {count}", row, _directions(row, run)[:count])
        for plan in run.layers
        for known, row in _planted_rows(run, plan, rows)
        if row.status == "ok" and row.num_images >= count
    ]


def view_outcomes(run: Run, rows: Sequence[NeuronRow]) -> list[Outcome]:
    """Score the same images by one of the two views alone, to see what each is worth.

    Args:
        run: The run.
        rows: Its rows.

    Returns:
        Outcomes of the conditions ``embedder`` and ``layer_input``, the latter for neurons of
        layers that have an input of their own.
    """
    outcomes = []
    for known, row in (found for plan in run.layers for found in _planted_rows(run, plan, rows)):
        if row.status == "ok":
            view = run.reference.frame(torch.from_numpy(row.embedding.copy()))
            outcomes.append(_rescored(run, known, VIEWS[0], row, view))
            if row.layer_input.shape[1]:
                view = normalize(torch.from_numpy(row.layer_input.copy()), dim=-1)
                outcomes.append(_rescored(run, known, VIEWS[1], row, view))
    return outcomes


def pooled_outcomes(run: Run, rows: Sequence[NeuronRow]) -> list[Outcome]:
    """Score perfect composites: images of the components put together, as many as a neuron has.

    They need no ascent of their own, so they tell what clusters and score could do if every
    feature had been found.

    Args:
        run: The run.
        rows: Its rows, those of the components among them.

    Returns:
        Outcomes of condition ``pooled``: the singles, and the composites whose components have
        images enough for one of each.
    """
    by_name = {row.neuron: row for row in rows if row.status == "ok"}
    outcomes = []
    for plan, p in ((layer, p) for layer in run.layers for p in layer.planted):
        found = [by_name.get(str(Neuron((component,)))) for component in p.neuron.components]
        own = [row for row in found if row is not None]
        if p.kind not in ("single", "max", "logits") or len(own) < len(found):
            continue
        valid = [int((row.label >= 0).sum()) for row in own]
        # As many images as one neuron has, and no more of any than it can give.
        count = min(max(valid), len(own) * min(valid))
        if count < len(own):
            continue
        chosen = _pool(own, count)
        directions = [_directions(row, run) for row in own]
        # Activations of different neurons have different units.
        strength = [_relative_strength(row) for row in own]
        weight = torch.tensor([strength[r][i] for r, i in chosen])
        score = polysemanticity_score(
            torch.stack([directions[r][i] for r, i in chosen])[None],
            weight[None],
            keys=torch.tensor([stream_key(run.seed, p.neuron, POOLED)]),
            **run.scorer.clustering(),
        )
        component = [r for r, _ in chosen]
        outcomes.append(_scored(_known(run, plan, p), POOLED, score, component, weight.tolist()))
    return outcomes


@torch.no_grad()
def second_scores(
    rows: Sequence[NeuronRow], embedder: Model, reference: Reference, scorer: Scorer, seed: int
) -> list[float]:
    """Score the same images with another embedder; the layer input stays.

    Args:
        rows: Neurons that have a score.
        embedder: The network that embeds their images now.
        reference: The frame of the subject and that network.
        scorer: How images become a score.
        seed: Seed of the run.

    Returns:
        A score for each row.
    """
    embed, scores = Embedder(embedder), []
    for row in rows:
        layer_input = torch.from_numpy(row.layer_input.copy())
        directions = reference.join(embed(torch.from_numpy(decode_images(row.image))), layer_input)
        scores.append(_rescore(row, directions, scorer, seed).score[0].item())
    return scores


def _pool(rows: Sequence[NeuronRow], count: int) -> list[tuple[int, int]]:
    """Choose images of several neurons that together are those of a perfect composite.

    The first valid ones of each row, as nearly equally many as can be: for each the index of its
    row, which is the feature that it shows, and its index among the images of that row.
    """
    shares = [count // len(rows) + (index < count % len(rows)) for index in range(len(rows))]
    return [
        (index, image)
        for index, (row, share) in enumerate(zip(rows, shares, strict=True))
        for image in np.flatnonzero(row.label >= 0)[:share].tolist()
    ]


def _planted_rows(
    run: Run, plan: LayerPlan, rows: Sequence[NeuronRow]
) -> list[tuple[dict[str, Any], NeuronRow]]:
    """List the planted neurons of a layer that are among some rows: what is known, and the row."""
    by_name = {row.neuron: row for row in rows}
    return [
        (_known(run, plan, p), by_name[str(p.neuron)])
        for p in plan.planted
        if str(p.neuron) in by_name
    ]


def _known(run: Run, plan: LayerPlan, p: PlantedNeuron) -> dict[str, Any]:
    """What is known of a planted neuron before it is scored, as attributes of its outcome."""
    components = tuple(map(str, p.neuron.components))
    return {
        "subject": run.subject,
        "layer": plan.layer,
        "neuron": str(p.neuron),
        "kind": p.kind,
        "m": p.m,
        "components": components,
        "screened": plan.classes or all(run.screened.get(c, False) for c in components),
        "seed": run.seed,
        "similarity": plan.similarity.get(str(p.neuron)),
    }


def _rescored(
    run: Run, known: Mapping[str, Any], condition: str, row: NeuronRow, directions: Tensor
) -> Outcome:
    """The outcome of a neuron's first images by other directions [N, D]."""
    score, count = _rescore(row, directions, run.scorer, run.seed), len(directions)
    component, activation = row.component[:count].tolist(), row.activation[:count].tolist()
    return _scored(known, condition, score, component, activation)


def _scored(
    known: Mapping[str, Any],
    condition: str,
    score: Score,
    component: list[int],
    activation: list[float],
) -> Outcome:
    return Outcome(
        **known,
        condition=condition,
        status="ok",
        scores={PRIMARY: score.score[0].item()},
        label=score.labels[0].tolist(),
        component=component,
        activation=activation,
        k=int(score.k[0]),
        score_low=None,
        score_high=None,
    )


def _directions(row: NeuronRow, run: Run) -> Tensor:
    """What the score compares a neuron's images by: unit vectors [N, D]."""
    embedding, layer_input = (torch.from_numpy(v.copy()) for v in (row.embedding, row.layer_input))
    return run.reference.join(embedding, layer_input)


def _score_table(rows: Sequence[NeuronRow], run: Run) -> dict[str, Tensor]:
    """Every score of some neurons, by name: float64 [U]."""
    most = max(row.num_images for row in rows)
    width = max(row.embedding.shape[1] for row in rows)
    directions = [_directions(row, run) for row in rows]
    framed = torch.zeros(len(rows), most, directions[0].shape[1])
    raw = torch.zeros(len(rows), most, width)
    activations = torch.full((len(rows), most), torch.nan)
    valid = torch.zeros(len(rows), most, dtype=torch.bool)
    for index, row in enumerate(rows):
        framed[index, : row.num_images] = directions[index]
        raw[index, : row.num_images] = torch.from_numpy(row.embedding.copy())
        activations[index, : row.num_images] = torch.from_numpy(row.activation.copy())
        valid[index, : row.num_images] = torch.from_numpy(row.label >= 0)
    return score_table(
        framed,
        raw,
        activations,
        valid,
        torch.tensor([stream_key(run.seed, row.neuron, "cluster") for row in rows]),
        finished=activations.isfinite(),
        baseline=torch.tensor([row.baseline for row in rows], dtype=torch.float32),
        **run.scorer.clustering(),
    )


def _rescore(row: NeuronRow, directions: Tensor, scorer: Scorer, seed: int) -> Score:
    """Score the first images of a neuron by other directions [N, D]."""
    count = len(directions)
    return polysemanticity_score(
        directions[None],
        torch.from_numpy(row.activation[:count].copy())[None],
        valid=torch.from_numpy(row.label[:count] >= 0)[None],
        keys=torch.tensor([stream_key(seed, row.neuron, "cluster")]),
        baseline=torch.tensor([row.baseline], dtype=torch.float32),
        **scorer.clustering(),
    )


def _relative_strength(row: NeuronRow) -> list[float]:
    """Gain of each image over the baseline, as a part of the best valid one's: [N]."""
    gain = row.activation.astype(np.float64) - row.baseline
    best: float = np.nanmax(np.where(row.label >= 0, gain, np.nan))
    return list((gain / best).tolist())
