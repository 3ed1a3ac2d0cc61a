"""Outcomes of planted neurons, one by one or as many as a validation has."""

import dataclasses

import numpy as np

from polylight.planted.outcome import Outcome


def outcome(kind="single", score=0.1, *, components=("a:0",), **changes):
    m = len(components) if kind in ("max", "logits") else 1
    made = Outcome(
        subject="net",
        condition="polylight",
        layer="a",
        neuron=components[0] if kind == "single" else f"{kind}({','.join(components)})",
        kind=kind,
        m=m,
        components=tuple(components),
        screened=True,
        status="ok",
        scores={"polylight": score},
        label=[0, 0, -1],
        component=[0, 0, 0],
        activation=[1.0, 2.0, 0.1],
        k=1,
        score_low=None,
        score_high=None,
        seed=0,
    )
    return dataclasses.replace(made, **changes)


def many(rng, *, layers=("a", "b"), condition="polylight", gain=0.15, seed=0):
    """Singles, composites and controls with noisy scores, on scales that differ by layer."""
    outcomes = []
    for number, layer in enumerate(layers):
        singles = [f"{layer}:{c}" for c in range(12)]
        asked = [("single", (component,)) for component in singles]
        asked += [("max", tuple(singles[i : i + m])) for m in (2, 3, 4) for i in range(8)]
        asked += [
            (kind, (singles[i], singles[i + 2]))
            for kind in ("min", "near_duplicates")
            for i in (0, 5)
        ]
        asked += [("copies", (component, component)) for component in singles[:3]]
        for kind, components in asked:
            m = len(components) if kind == "max" else 1
            score = rng.normal(0.2 + 0.1 * number + gain * (m - 1), 0.1)
            label = rng.integers(-1, m, 12)
            changes = {
                "layer": layer,
                "condition": condition,
                "seed": seed,
                "screened": bool(rng.random() < 0.7),
                "scores": {"polylight": float(score), "paper": float(round(rng.random(), 1))},
                "label": label.tolist(),
                "component": rng.integers(0, m, 12).tolist(),
                "activation": [1.0] * 12,
                "k": int(rng.integers(1, 5)),
                "score_low": float(score) - 0.1,
                "score_high": float(score) + 0.2,
                "similarity": float(rng.random()) if len(components) == 2 else None,
            }
            outcomes.append(outcome(kind, components=components, **changes))
    return outcomes


def of(outcomes, kinds, name="polylight", **wanted):
    chosen = [o for o in outcomes if o.kind in kinds]
    chosen = [o for o in chosen if all(getattr(o, k) == v for k, v in wanted.items())]
    return np.array([o.m for o in chosen]), np.array([o.scores[name] for o in chosen])
