"""Rows of random but valid values."""

import dataclasses

import numpy as np

from polylight.run.png import encode_png
from polylight.run.schema import NeuronRow


def make_row(neuron="blocks.4:17", *, n=6, k=2, score=0.5, **changes):
    rng = np.random.default_rng(sum(neuron.encode()))
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    row = NeuronRow(
        neuron=neuron,
        layer="blocks.4",
        channel=17,
        status="ok",
        score=score,
        score_low=score - 0.1,
        score_high=score + 0.1,
        separation=9.5,
        p_value=0.005,
        # What is read, where all p-values of the layer are alike.
        q_value=0.005,
        k=k,
        k_stability=0.75,
        coverage=0.9,
        k_eff=1 / (1 - score),
        score_paper=0.51,
        num_images=n,
        stop_reason="elbow",
        steps=2**40,
        bic=rng.normal(size=8),
        label=rng.integers(-1, k, n).astype(np.int32),
        activation=rng.normal(size=n).astype(np.float32),
        baseline=0.25,
        component=rng.integers(0, 3, n).astype(np.int32),
        component_scale=rng.normal(size=(3, 2)),
        cluster_weight=rng.dirichlet(np.ones(k)),
        embedding=rng.normal(size=(n, 16)).astype(np.float32),
        layer_input=rng.normal(size=(n, 5)).astype(np.float32),
        image=encode_png(images),
        seed=2**62,
        seconds=1.25,
    )
    return dataclasses.replace(row, **changes)


def make_dead(neuron="blocks.4:5"):
    """A row in which everything that can be missing is missing."""
    none = dict.fromkeys(
        [
            "channel",
            "score",
            "score_low",
            "score_high",
            "separation",
            "p_value",
            "q_value",
            "k",
            "k_stability",
            "coverage",
            "k_eff",
        ]
    )
    return dataclasses.replace(
        make_row(neuron, n=0),
        status="dead",
        stop_reason="max_images",
        score_paper=None,
        bic=np.zeros(0),
        cluster_weight=np.zeros(0),
        **none,
    )


def same(one, other):
    """Whether two rows are equal to the bit, but for their time and what depends on the others."""
    return all(
        _equal(getattr(one, name), getattr(other, name))
        for name in one.__dataclass_fields__
        if name not in ("seconds", "q_value")
    )


def _equal(one, other):
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one == other
