"""A second opinion from within: the subject's own layer below in place of an embedder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polylight.augment import on_grey
from polylight.kernels import stream_key
from polylight.models import Model
from polylight.pictures import decode_images
from polylight.rows import NeuronRow
from polylight.scoring import polysemanticity_score
from polylight.validate.outcome import PRIMARY, Outcome
from polylight.validate.photos import pooled_activations
from polylight.validate.runs import Collector

INSIDE = "inside"
"""Recipe of the same images, as the layer below sees them."""
_FEWEST = 2


def inside_outcomes(
    found: Collector,
    rows: Sequence[NeuronRow],
    subject: Model,
    below: Mapping[str, str],
    canvas: int,
) -> list[Outcome]:
    """Score the same images once more, embedded by the activations of the layer below.

    What drives a neuron comes from there, so it shows what the images have in common for the
    network itself, whatever an embedder makes of them. Each channel counts in standard deviations
    from its mean over the images of the layer's single channels that are no part of the neuron.

    Args:
        found: Puts the scores beside what is known of the neurons.
        rows: Rows of the run.
        subject: The network.
        below: For some layers, the one below; neurons of the others are left out, and of layers
            with fewer than two other channels to compare with.
        canvas: Side that the subject sees images at, in pixels.

    Returns:
        Outcomes of recipe ``inside``.
    """
    by_name = {row.neuron: row for row in rows if row.status == "ok"}
    outcomes = []
    for plan in found.plans:
        planted = [p for p in plan.planted if str(p.neuron) in by_name]
        if plan.layer not in below or not planted:
            continue
        here = [by_name[str(p.neuron)] for p in planted]
        seen = _seen(subject, below[plan.layer], here, canvas)
        for p, row, own in zip(planted, here, seen, strict=True):
            others = [
                images
                for q, images in zip(planted, seen, strict=True)
                if q.kind == "single" and not {*q.parts} & {*p.parts}
            ]
            if len(others) < _FEWEST:
                continue
            score = polysemanticity_score(
                _standardised(own, torch.cat(others))[None],
                torch.from_numpy(row.activation.copy())[None],
                votes=torch.from_numpy(row.label >= 0)[None],
                keys=torch.tensor([stream_key(found.task.seed, row.neuron, INSIDE)]),
                baseline=torch.tensor([row.baseline]),
                **found.task.scorer.clustering(),
            )
            outcomes.append(
                found.outcome(
                    plan,
                    p,
                    recipe=INSIDE,
                    status="ok",
                    scores={PRIMARY: score.score[0].item()},
                    labels=score.labels[0].tolist(),
                    winner=row.part.tolist(),
                    activation=row.activation.tolist(),
                    k=int(score.k[0]),
                    score_low=None,
                    score_high=None,
                )
            )
    return outcomes


def _seen(subject: Model, layer: str, rows: Sequence[NeuronRow], canvas: int) -> list[Tensor]:
    """Pooled activations [N, C] of a layer for the images of each neuron."""
    images = on_grey(torch.cat([decode_images(row.image) for row in rows]), canvas)
    pooled = pooled_activations(subject, [layer], images, torch.device("cpu"))[layer]
    return list(torch.split(pooled.double(), [row.num_images for row in rows]))


def _standardised(values: Tensor, others: Tensor) -> Tensor:
    """Deviations [N, C] from the mean of others [M, C], in their standard deviations."""
    deviation = others.std(0)
    # A channel that is the same for all of them tells nothing.
    moves = deviation > 1e-6 * deviation.max()
    return torch.where(moves, (values - others.mean(0)) / deviation, 0.0)
