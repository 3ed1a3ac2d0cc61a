"""What a neuron's numbers mean, in plain sentences."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from polylight.photos.above import ABOVE_PHOTOS
from polylight.report.content import NeuronDetail, NeuronSummary, Run
from polylight.report.words import counted, number, percent
from polylight.run.schema import SEPARATION_THRESHOLD

GLOSSARY = (
    ("score", "Score", "Polysemanticity: near 0 for one feature, towards 1 for unrelated ones."),
    ("interval", "95 %", "Where the score would lie, in 95 of 100 cases, with images made anew."),
    (
        "separation",
        "Separation",
        "How much better the images fall into clusters than those of one feature would, in "
        f"standard deviations. Above {SEPARATION_THRESHOLD:g} several features are likelier than "
        "one: this decides whether K is 1.",
    ),
    (
        "p",
        "p",
        "How often one Gaussian cloud, as wide as these images, would cluster as well. Images of "
        "one real feature are no such cloud, so a small p alone does not mean several features.",
    ),
    ("q", "q", "The same, corrected for the number of neurons in the layer that were tested."),
    ("k", "K", "Number of clusters that the images fall into: the features that were found."),
    ("k_stability", "K stability", "Share of random halves of the images with the same K."),
    (
        "k_eff",
        "K_eff",
        "As how many equal, unrelated features they count: 1 / (1 - score). Features that are "
        "alike, or weak, count for less.",
    ),
    (
        "coverage",
        "Coverage",
        "Estimated chance that one more image would show a feature that is known; features that "
        "few images would show can be missing even at 1.",
    ),
    (
        "score_paper",
        "Alic et al. (2025) score",
        "The column score_paper: from raw embeddings; it grows with K, not with how unlike the "
        "features are.",
    ),
    ("activation", "Activation", "Median over the images, in the layer's own unit."),
    (
        "above_photos",
        "Above photos",
        "Share of the images that drive the neuron more than any of the photos that it was shown.",
    ),
)
"""What each number of a neuron means: its key, its short name, a sentence."""


def glossary(run: Run) -> list[tuple[str, str, str]]:
    """List what the numbers of a run's neurons mean, those that it has."""
    return [entry for entry in GLOSSARY if run.photos is not None or entry[0] != ABOVE_PHOTOS]


# A score that is written as 0.000.
_NOTHING = 0.0005
# Of n images half are drawn, and a half reaches K = n / 4.
_STABLE_FROM, _UNSTABLE = 16, 0.5
# A p-value that a reader would take for support.
_SMALL_P = 0.05


def explain(neuron: NeuronSummary, detail: NeuronDetail) -> list[str]:
    """Say what a neuron's numbers mean.

    Args:
        neuron: With the columns of ``neuron_table.SCALARS``.
        detail: Knows which numbers of clusters were within reach.

    Returns:
        A few sentences, the most important first.
    """
    values = neuron.values
    if values["status"] == "dead":
        return ["No image drives this neuron beyond what random images do, so it has no score."]
    if values["status"] == "failed":
        return ["None of its images had a finite activation, so it has no score."]
    if neuron.score is None or values["k"] is None:
        return ["It has no score."]
    if neuron.reported == "score_paper":
        return [_alic(values)]
    return [*_features(values, detail), *_support(values), *_reliance(values)]


def why_k(neuron: NeuronSummary, detail: NeuronDetail, selection: str) -> str:
    """Say why K is what it is: by the separation, and by what chooses among several features.

    Args:
        neuron: The neuron.
        detail: Knows the BIC of each K.
        selection: What chose K: ``bic``, ``xmeans``, ``gmeans`` or ``sigclust``.

    Returns:
        A few sentences.
    """
    k, separation = neuron.values["k"], neuron.values["separation"]
    if neuron.reported == "score_paper" and k is not None:
        return f"Of all its images, {selection} chose K = {k}; Alic et al. (2025) test no further."
    known = [(value, -i) for i, value in enumerate(detail.bic, 1) if i > 1 and math.isfinite(value)]
    if k is None:
        return "There was nothing to choose between."
    valid = counted(
        sum(len(cluster.pictures) for cluster in detail.clusters if cluster.number), "valid image"
    )
    if separation is None or not known:
        return f"With {valid} more than one feature was out of reach."
    best, largest = -max(known)[1], -known[-1][1]
    tried = f"the largest BIC of K = 2 to {largest}" if largest > 2 else "no other K within reach"
    above = "above" if separation > SEPARATION_THRESHOLD else "not above"
    decided = (
        "Whether there is more than one feature is decided by the separation, not by the BIC: "
        f"{number(separation, '.1f')} is {above} {SEPARATION_THRESHOLD:g}, so "
    )
    if separation <= SEPARATION_THRESHOLD:
        return (
            f"{decided}one feature is likelier, and K = 1 wherever the curve peaks. If there were "
            f"several, it would be K = {best}, with {tried}."
        )
    if selection == "bic":
        return f"{decided}several features are likelier. Of these, K = {k} has {tried}."
    return (
        f"{decided}several features are likelier. K = {k} was chosen by {selection}; "
        f"K = {best} has {tried}."
    )


def _features(values: Mapping[str, Any], detail: NeuronDetail) -> Iterator[str]:
    """Say how many features were found, and what they count for."""
    images = counted(values["num_images"], "image")
    score = number(values["score"], ".3f")
    if values["k"] > 1:
        yield (
            f"Its {images} fall into {values['k']} clusters. By their strength and by how unlike "
            f"they are, these count as {number(values['k_eff'], '.1f')} equal, unrelated features."
        )
        within = [i for i, value in enumerate(detail.bic, 1) if math.isfinite(value)]
        if within and values["k"] >= within[-1]:
            yield (
                f"K = {values['k']} is the most that was tried with so many images, so it may have "
                "more features."
            )
    elif values["score"] < _NOTHING:
        yield f"One feature explains its {images}."
    else:
        yield (
            f"One feature is the likeliest explanation of its {images}; the score of {score} is "
            "for how far they differ all the same."
        )


def _alic(values: Mapping[str, Any]) -> str:
    """Say what the score of Alic et al. (2025) is made of."""
    k, images = values["k"], values["num_images"]
    share = (k - 1) / max(images - 1, 1)
    return (
        f"Its {counted(images, 'image')} fall into {counted(k, 'cluster')}. The score is "
        f"C + D \u2212 C \u00b7 D, of which C = (K \u2212 1) / (images \u2212 1) = "
        f"{number(share, '.3f')} and D says how far the clusters are apart."
    )


def _support(values: Mapping[str, Any]) -> Iterator[str]:
    """Say how well one or several features are supported."""
    p, q, separation = values["p_value"], values["q_value"], values["separation"]
    if p is None or separation is None:
        yield "It has too few valid images to test whether one feature would explain them."
        return
    chance = f"p = {number(p, '.3f')}"
    if q is not None:
        chance += f", q = {number(q, '.3f')} over its layer"
    better = f"{number(separation, '.1f')} standard deviations better" if separation > 0 else "no"
    clustered = (
        f"Its images fall into clusters {better}{'' if separation > 0 else ' better'} than those "
        "of one feature would"
    )
    if separation > SEPARATION_THRESHOLD:
        yield (
            f"{clustered}; above {SEPARATION_THRESHOLD:g} several features are likelier than one "
            f"({chance})."
        )
        return
    yield f"{clustered}; only above {SEPARATION_THRESHOLD:g} are several likelier than one."
    if p <= _SMALL_P:
        yield (
            f"The small p ({chance}) supports neither one feature nor several: it says that the "
            "images are not one Gaussian cloud, which those of one real feature rarely are."
        )
    else:
        yield f"One Gaussian cloud would often cluster as well ({chance})."


def _reliance(values: Mapping[str, Any]) -> Iterator[str]:
    """Say how far K can be relied on, and what may be missing."""
    stability, coverage, images = values["k_stability"], values["coverage"], values["num_images"]
    if stability is not None:
        few = images < _STABLE_FROM and stability < _UNSTABLE
        caution = f", which is often low with fewer than {_STABLE_FROM} images" if few else ""
        yield f"{percent(stability)} of random halves of the images give the same K{caution}."
    if coverage is not None and images:
        # Exact binomial bound of a share that none of n images showed (Clopper & Pearson 1934).
        rare = percent(1.0 - 0.05 ** (1.0 / images))
        missing = f"that fewer than {rare} of such images show may still be missing."
        if coverage < 1.0:
            yield (
                f"One more image would show a known feature in about {percent(coverage)} of "
                f"cases; one {missing}"
            )
        else:
            yield f"A feature {missing}"
