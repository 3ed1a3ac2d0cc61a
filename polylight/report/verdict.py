"""What a neuron's numbers mean, in plain sentences."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from polylight.report.content import NeuronDetail, NeuronSummary
from polylight.report.figures import counted, number, percent
from polylight.run.schema import SEPARATION_THRESHOLD

# A score that is written as 0.000.
_NOTHING = 0.0005
# Of n images half are drawn, and a half reaches K = n / 4.
_STABLE_FROM, _UNSTABLE = 16, 0.5

GLOSSARY = (
    ("score", "Score", "Polysemanticity: near 0 for one feature, towards 1 for unrelated ones."),
    ("interval", "95 %", "Where the score would lie, in 95 of 100 cases, with images made anew."),
    (
        "separation",
        "Separation",
        "How much better the images fall into clusters than those of one feature would, in "
        f"standard deviations; from {SEPARATION_THRESHOLD:g} on several features are likelier "
        "than one.",
    ),
    ("p", "p", "How often images of one feature, of the same spread, cluster as well."),
    ("q", "q", "The same, corrected for the number of neurons in the layer that were tested."),
    ("k", "K", "Number of clusters that the images fall into: the features that were found."),
    ("k_stability", "K stability", "Share of random halves of the images with the same K."),
    (
        "k_eff",
        "K_eff",
        "As how many equal, unrelated features they count: 1 / (1 - score). Features that are "
        "alike, or weak, count for less.",
    ),
    ("coverage", "Coverage", "How likely one more image would show a feature that is known."),
    (
        "score_paper",
        "Paper's score",
        "The score of Alic et al. (2025), from raw embeddings; it grows with K, not with how "
        "unlike the features are.",
    ),
    ("activation", "Activation", "Median over the images, in the layer's own unit."),
)
"""What each number of a neuron means: its key, its short name, a sentence."""


def verdict(neuron: NeuronSummary) -> list[str]:
    """Say what a neuron's numbers mean.

    Args:
        neuron: With the columns of ``neuron_table.SCALARS``.

    Returns:
        A few sentences, the most important first.
    """
    values = neuron.values
    if values["status"] == "dead":
        return ["No image drives this neuron beyond what random images do, so it has no score."]
    if values["status"] == "failed":
        return ["None of its images had a finite activation, so it has no score."]
    if values["score"] is None or values["k"] is None:
        return ["It has no score."]
    return [_features(values), *_evidence(values), *_reliance(values)]


def why_k(neuron: NeuronSummary, detail: NeuronDetail, selection: str) -> str:
    """Say why K is what it is: by the evidence for several features, and by the criterion.

    Args:
        neuron: The neuron.
        detail: Knows the criterion of each K.
        selection: What chose K: ``bic``, ``xmeans``, ``gmeans`` or ``sigclust``.

    Returns:
        One or two sentences.
    """
    k, separation = neuron.values["k"], neuron.values["separation"]
    known = [(value, -i) for i, value in enumerate(detail.bic, 1) if i > 1 and math.isfinite(value)]
    if k is None:
        return "There was nothing to choose between."
    valid = counted(
        sum(len(cluster.pictures) for cluster in detail.clusters if cluster.number), "valid image"
    )
    if separation is None or not known:
        return f"With {valid} more than one feature was out of reach."
    best, largest = -max(known)[1], -known[-1][1]
    tried = f"the largest BIC of K = 2 to {largest}" if largest > 2 else "no rival within reach"
    if separation <= SEPARATION_THRESHOLD:
        return (
            f"{_clustered(separation)} so one feature is likelier than several. If there were "
            f"several, K = {best} would have {tried}."
        )
    several = f"{_clustered(separation)} so several features are likelier than one."
    if selection == "bic":
        return f"{several} Of these, K = {k} has {tried}."
    return f"{several} K = {k} was chosen by {selection}; K = {best} has {tried}."


def _features(values: Mapping[str, Any]) -> str:
    """Say how many features were found, and what they count for."""
    images = counted(values["num_images"], "image")
    if values["k"] > 1:
        return (
            f"Its {images} fall into {values['k']} clusters. By their strength and by how unlike "
            f"they are, these count as {number(values['k_eff'], '.1f')} equal, unrelated features."
        )
    if values["score"] < _NOTHING:
        return f"One feature explains its {images}."
    score = number(values["score"], ".3f")
    return (
        f"One feature is the likeliest explanation of its {images}; the score of {score} is for "
        "how far they differ all the same."
    )


def _evidence(values: Mapping[str, Any]) -> Iterator[str]:
    """Say how well several features are supported."""
    p, q, separation = values["p_value"], values["q_value"], values["separation"]
    if p is None or separation is None:
        yield "It has too few valid images to test whether one feature would explain them."
        return
    corrected = "" if q is None else f", q = {number(q, '.3f')} over its layer"
    several = f"from {SEPARATION_THRESHOLD:g} on several features are likelier than one"
    yield (
        f"{_clustered(separation)} and {several} (p = {number(p, '.3f')}{corrected})."
        if separation > SEPARATION_THRESHOLD
        else f"{_clustered(separation)} while {several} (p = {number(p, '.3f')}{corrected})."
    )


def _clustered(separation: float) -> str:
    """Say how much better images fall into clusters than those of one feature."""
    if separation <= 0:
        return "Its images fall into clusters no better than those of one feature would,"
    return (
        f"Its images fall into clusters {number(separation, '.1f')} standard deviations better "
        "than those of one feature would,"
    )


def _reliance(values: Mapping[str, Any]) -> Iterator[str]:
    """Say how far K can be relied on, and what may be missing."""
    stability, coverage = values["k_stability"], values["coverage"]
    if stability is not None:
        few = values["num_images"] < _STABLE_FROM and stability < _UNSTABLE
        caution = f", which is often low with fewer than {_STABLE_FROM} images" if few else ""
        yield f"{percent(stability)} of random halves of the images give the same K{caution}."
    if coverage is not None:
        yield f"One more image would show nothing new with a probability of {percent(coverage)}."
