"""Whether a score comes out the same again: another seed, another embedder, its interval."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.kernels import stream_key
from polylight.networks import Model
from polylight.planted.outcome import PRIMARY, Outcome
from polylight.planted.statistics import icc, spearman
from polylight.run.png import decode_images
from polylight.run.schema import NeuronRow
from polylight.scoring import polysemanticity_score
from polylight.scoring.scorer import Scorer


@dataclass(frozen=True)
class Agreement:
    """How far two scores of the same neurons agree; NaN where there are too few.

    Attributes:
        neurons: Neurons that both score.
        spearman: Rank correlation, in [-1, 1].
        icc: Intraclass correlation ICC(2,1), of which 1 is perfect agreement.
    """

    neurons: int
    spearman: float
    icc: float


@dataclass(frozen=True)
class Calibration:
    """Whether the 95 % intervals hold what they promise.

    Attributes:
        neurons: Neurons that were scored with at least three seeds.
        seeds: The most seeds of any of them.
        coverage: Share of the intervals that hold the mean score of the other seeds.
        width: Mean width of an interval.
    """

    neurons: int
    seeds: int
    coverage: float
    width: float


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Compare two scores of each of some neurons."""
    if len(first) < 3:
        return Agreement(len(first), float("nan"), float("nan"))
    return Agreement(len(first), float(spearman(first, second)), float(icc(first, second)))


def seeds_agreement(outcomes: Sequence[Outcome]) -> Agreement:
    """Compare the scores of single channels between the first two seeds of a recipe."""
    by_neuron = defaultdict[tuple[str, str], dict[int, float]](dict)
    for o in outcomes:
        score = o.score(PRIMARY)
        if o.kind == "single" and score is not None:
            by_neuron[o.subject, o.neuron][o.seed] = score
    seeds = sorted({seed for scores in by_neuron.values() for seed in scores})[:2]
    both = [s for s in by_neuron.values() if len(seeds) == 2 and all(x in s for x in seeds)]
    return agreement([s[seeds[0]] for s in both], [s[seeds[1]] for s in both])


def calibration(outcomes: Sequence[Outcome]) -> Calibration | None:
    """Count how many intervals hold the mean score that the other seeds give.

    Args:
        outcomes: Of one recipe and several seeds.

    Returns:
        The calibration; None with fewer than three seeds of any neuron.
    """
    by_neuron = defaultdict[tuple[str, str], list[Outcome]](list)
    for o in outcomes:
        if o.score(PRIMARY) is not None and o.score_low is not None and o.score_high is not None:
            by_neuron[o.subject, o.neuron].append(o)
    held, widths, most = [], [], 0
    groups = [group for group in by_neuron.values() if len(group) >= 3]
    for group in groups:
        most = max(most, len(group))
        scores = np.array([o.scores[PRIMARY] for o in group])
        for index, o in enumerate(group):
            low, high = o.score_low or 0.0, o.score_high or 0.0
            held.append(low <= np.delete(scores, index).mean() <= high)
            widths.append(high - low)
    if not groups:
        return None
    return Calibration(len(groups), most, float(np.mean(held)), float(np.mean(widths)))


@torch.no_grad()
def rescore(
    rows: Sequence[NeuronRow], embedder: Model, reference: Reference, scorer: Scorer, seed: int
) -> list[float]:
    """Score the same images with another embedder; what the layer below sees stays.

    Args:
        rows: Neurons that have a score.
        embedder: The network that embeds their images now.
        reference: The frame of the subject as that network sees it.
        scorer: How images become a score.
        seed: Seed of the run.

    Returns:
        A score for each row.
    """
    look, scores = Embedder(embedder), []
    for row in rows:
        seen = look(torch.from_numpy(decode_images(row.image)))
        found = polysemanticity_score(
            reference.join(seen, torch.from_numpy(row.layer_input.copy()))[None],
            torch.from_numpy(row.activation.copy())[None],
            valid=torch.from_numpy(row.label >= 0)[None],
            keys=torch.tensor([stream_key(seed, row.neuron, "cluster")]),
            baseline=torch.tensor([row.baseline], dtype=torch.float32),
            **scorer.clustering(),
        )
        scores.append(found.score[0].item())
    return scores
