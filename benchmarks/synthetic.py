"""Runs that nothing was computed for: plausible rows and pictures, thousands in seconds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polylight.run.manifest import Manifest, write_manifest
from polylight.run.png import encode_png
from polylight.run.schema import NeuronRow
from polylight.run.store import RunStore

Floats = npt.NDArray[np.float64]

ODD_LAYER = 'head.<script>document.title="ran"</script>/../"&quot;'
"""Name of a layer that a report has to show and must not run, open or follow."""

_ROWS_PER_PART = 16
_BELOW = 192  # channels of the layer below, as many as in the middle of a network
_CONCEPTS, _VARIANTS, _MAX_CLUSTERS = 24, 6, 8
_CONFIG = """\
seed_everything: {seed}
model:
  subject: synthetic
  embedder: synthetic
data:
  neurons:
  - stage.0:*
run_dir: {folder}
"""


@dataclasses.dataclass(frozen=True)
class _Concept:
    """What neurons may look for: a direction [D], and PNG files of pictures that show it."""

    direction: Floats
    pictures: Sequence[bytes]


def write_synthetic_run(
    folder: str | Path,
    *,
    neurons: int = 4000,
    images: int = 16,
    layers: int = 8,
    size: int = 128,
    seed: int = 0,
    features: int = 64,
    grain: float = 0.0,
) -> None:
    """Write a run directory as ``polylight fit`` leaves it, of neurons that are made up.

    Neurons share a few dozen concepts. Each has one to four of them, its images cluster around
    them in the embedding space, and its score follows from its clusters. Every 40th neuron is
    dead, every 500th has failed, the last two are composites, and those of the last layer have a
    name that is markup.

    Args:
        folder: The run's directory; made if it is not there.
        neurons: How many, > 0.
        images: Images of a neuron, > 4.
        layers: How many layers the plain neurons are spread over, > 0.
        size: Side of the pictures, pixels.
        seed: Of all that is random.
        features: Length of an embedding.
        grain: Standard deviation of noise in the pictures, of 1. Real ones are grainy, which
            makes their files larger; it costs time.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    concepts = _concepts(rng, size, features, grain)
    rows = _rows(rng, concepts, neurons, images, layers, seed)
    tally = {"total": neurons, "finished": neurons, "dead": 0, "failed": 0}
    store = RunStore(folder)
    steps = 0
    while part := list(islice(rows, _ROWS_PER_PART)):
        store.append(part)
        steps += sum(row.steps for row in part)
        for row in part:
            if row.status != "ok":
                tally[row.status] += 1
    store.close()
    write_manifest(folder, _manifest(tally, images, steps, size, seed))
    (folder / "config.yaml").write_text(_CONFIG.format(seed=seed, folder=folder))


def _concepts(rng: np.random.Generator, size: int, features: int, grain: float) -> list[_Concept]:
    """Draw concepts: directions that are nearly at right angles, and pictures of stripes."""
    axis = np.linspace(-1.0, 1.0, size)
    concepts = []
    for _ in range(_CONCEPTS):
        colours = rng.normal(size=(3, 3)) * 0.6
        # Cycles across the picture; the first wave gives its layout, the others its texture.
        frequency = rng.uniform([[0.5], [2.0], [4.0]], [[1.5], [5.0], [9.0]])
        angle = rng.uniform(0, np.pi, (3, 1))
        pictures = []
        for _ in range(_VARIANTS):
            turned = angle + rng.normal(0, 0.15)
            phase = rng.uniform(0, 2 * np.pi, 3)
            bend = rng.normal(0, 0.4) * axis[:, None] * axis
            waves = [
                np.sin(np.pi * f * (np.cos(a) * axis[:, None] + np.sin(a) * axis + bend) + p)
                for f, a, p in zip(frequency[:, 0], turned[:, 0], phase, strict=True)
            ]
            colour = np.tensordot(np.stack(waves, -1), colours, 1)
            colour += grain * 2.5 * rng.normal(size=colour.shape)
            pictures.append(np.uint8(255 / (1 + np.exp(-2 * colour))))
        concepts.append(_Concept(_unit(rng.normal(size=features)), encode_png(np.stack(pictures))))
    return concepts


def _rows(
    rng: np.random.Generator,
    concepts: Sequence[_Concept],
    neurons: int,
    images: int,
    layers: int,
    seed: int,
) -> Iterator[NeuronRow]:
    """Make the rows one by one, so that no more than a part's are held."""
    names = [f"stage.{i}" for i in range(layers - 1)] + [ODD_LAYER]
    per_layer = -(-neurons // layers)
    for i in range(neurons):
        layer, channel = names[i // per_layer], i % per_layer
        row = _row(rng, concepts, f"{layer}:{channel}", images, seed)
        row = dataclasses.replace(row, layer=layer, channel=channel)
        if i >= neurons - 2 and neurons > 2:
            parts = f"{names[0]}:{i % per_layer},{names[-1]}:1"
            row = dataclasses.replace(
                row,
                neuron=f"max({parts})",
                layer=",".join(dict.fromkeys((names[0], names[-1]))),
                channel=None,
                component=(row.label > 0).astype(np.int32),
                component_scale=np.array([[0.0, 1.0]] * 2),
            )
        elif i % 500 == 37:
            row = _without_score(row, "failed")
        elif i % 40 == 7:
            row = _without_score(row, "dead")
        yield row


def _row(
    rng: np.random.Generator, concepts: Sequence[_Concept], neuron: str, images: int, seed: int
) -> NeuronRow:
    """Make a neuron that has between one and four concepts."""
    k = int(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]))
    shown = rng.choice(len(concepts), k, replace=False)
    # As in a run, every cluster has an image and the first has the most.
    counts = np.sort(1 + rng.multinomial(images - k, rng.dirichlet(np.full(k, 3.0))))[::-1]
    label = rng.permutation(np.repeat(np.arange(k), counts))
    centres = np.stack([concepts[c].direction for c in shown])
    # The neuron's own taste, which all of its images share.
    features = len(concepts[0].direction)
    centres += rng.uniform(0.0, 1.2) * _unit(rng.normal(size=features))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.normal(size=(images, features)) / features**0.5
    spread = rng.uniform(0.3, 0.7)
    activation = (4.0 + 2.0 * rng.uniform(size=k))[label] * rng.uniform(0.8, 1.2, images)
    weight = np.bincount(label, activation, k) / activation.sum()
    score = max(0.0, float(1 - weight @ np.maximum(centres @ centres.T, 0.0) @ weight))
    low = max(0.0, score - float(rng.uniform(0.02, 0.1)))
    tried = np.arange(1, _MAX_CLUSTERS + 1)
    embedding = (centres[label] + spread * noise).astype(np.float32)
    return NeuronRow(
        neuron=neuron,
        layer="",
        channel=None,
        status="ok",
        score=score,
        score_low=low,
        score_high=min(1.0, score + float(rng.uniform(0.02, 0.1))),
        separation=float(rng.uniform(5.0, 12.0) if k > 1 else rng.uniform(-1.0, 3.5)),
        p_value=0.005 if k > 1 else float(rng.uniform(0.05, 1.0)),
        q_value=None,
        k=k,
        k_stability=float(rng.beta(6, 2)),
        coverage=float(rng.uniform(0.75, 1.0)),
        k_eff=1 / (1 - score),
        score_paper=min(1.0, 0.3 + 0.6 * score),
        num_images=images,
        stop_reason="max_images" if images % 3 else "elbow",
        steps=int(rng.integers(60, 128)) * images,
        bic=62_000 - 300.0 * (tried - k) ** 2 / tried + rng.normal(0, 20, len(tried)),
        label=label.astype(np.int32),
        activation=activation.astype(np.float32),
        baseline=0.4,
        component=np.zeros(images, np.int32),
        component_scale=np.array([[0.0, 1.0]]),
        cluster_weight=weight,
        embedding=embedding,
        layer_input=embedding[:, :_BELOW],
        image=[concepts[shown[c]].pictures[rng.integers(_VARIANTS)] for c in label],
        seed=seed,
        seconds=float(rng.uniform(5.0, 12.0)),
    )


def _without_score(row: NeuronRow, status: Literal["dead", "failed"]) -> NeuronRow:
    """Make a neuron whose images are not valid."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("score", "score_low", "score_high", "p_value", "k", "k_stability", "coverage", "k_eff")
    )
    return dataclasses.replace(
        row,
        **nothing,
        status=status,
        stop_reason="max_images",
        score_paper=None,
        bic=np.full(_MAX_CLUSTERS, np.nan),
        label=np.full_like(row.label, -1),
        activation=np.full_like(row.activation, 0.3 if status == "dead" else np.nan),
        cluster_weight=np.zeros(0),
    )


def _manifest(
    tally: Mapping[str, int], images: int, image_steps: int, size: int, seed: int
) -> Manifest:
    """Make the record of a run on one core."""
    ascent = image_steps / 120
    shares = {"load": 0.001, "measure": 0.001, "refill": 0.002, "embed": 0.05, "cluster": 0.003}
    seconds = {"ascent": ascent, **{stage: share * ascent for stage, share in shares.items()}}
    return Manifest(
        status="finished",
        device={"name": "cpu", "threads": 1, "pool_size": 8, "kernels": "numba"},
        subject={"name": "synthetic", "source": "packaged", "weights_hash": "0" * 32},
        embedder={"name": "synthetic", "source": "packaged", "weights_hash": "1" * 32},
        reference_hash="2" * 32,
        seed=seed,
        settings={
            "parametrization": {"kind": "fourier", "size": size, "sd": 0.01, "decay": 1.0},
            "ascent": {"max_steps": 128, "learning_rate": 0.05, "repulsion": 4.0},
            "rounds": {"round_size": 1, "min_images": images, "max_images": images},
            "precision": "float32",
            "scoring": {"max_clusters": _MAX_CLUSTERS, "selection": "bic", "backend": "gram"},
        },
        neurons=tally,
        images=images * tally["finished"],
        image_steps=image_steps,
        slot_steps=image_steps,
        seconds={**seconds, "total": sum(seconds.values())},
    )


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)
