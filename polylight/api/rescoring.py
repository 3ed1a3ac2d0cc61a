"""``polylight.rescore``: the stored images of a run, scored in another way."""

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polylight.api.arguments import as_device
from polylight.api.runs import ScoredRun
from polylight.clustering import Backend, Selection
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.isolation import isolated
from polylight.kernels import Kernels
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.schema import NeuronRow
from polylight.run.session import RunSession
from polylight.run.store import REFERENCE, part_paths, stream_rows
from polylight.scoring import strength_gate
from polylight.scoring.points import as_tensor
from polylight.scoring.scorer import Scorer

# Neurons that are scored at once.
_BATCH = 16


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored:
    """What a row has kept of the first images of a neuron (:class:`scoring.scorer.Judged`)."""

    neuron: str
    embeddings: Tensor
    layer_input: Tensor
    activations: Tensor
    baseline: float
    inactive: Tensor


def rescore(
    run: ScoredRun | str | Path,
    *,
    images: int | None = None,
    selection: Selection | None = None,
    strength: float | None = None,
    max_clusters: int | None = None,
    restarts: int | None = None,
    clustering: Backend | None = None,
    kernels: Kernels = "auto",
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> ScoredRun:
    """Score the stored images of a run again: nothing climbs, so a layer takes seconds.

    What is not given is as the run has it; with everything as it was, the scores are the same to
    the bit, on the same kind of device.

    Args:
        run: A scored run, or its directory.
        images: Only the first so many images of each neuron, > 0.
        selection: What chooses the number of clusters: ``bic``, ``xmeans``, ``gmeans`` or
            ``sigclust``.
        strength: An image is valid whose gain is at least this part of its neuron's median. Which
            images a rectifier held at zero is not stored; of images that are not valid it is taken
            from their activations.
        max_clusters: Largest number of clusters that is tried.
        restarts: Starts of k-means for each number.
        clustering: ``gram``, ``faiss`` or ``cuml``.
        kernels: Which implementation of ``gram`` runs; only the last digits depend on it.
        run_dir: Where to keep the new run, a directory that is new or empty; unless given it is a
            temporary one, as of :func:`polylight.score`.
        device: Where to work; unless given the kind that the run was made on, if it is here.

    Returns:
        The run, with the same images and other scores.

    Raises:
        InputError: If the directory is no run, keeps no reference or manifest, or a setting cannot
            be used.
    """
    source = run.run_dir if isinstance(run, ScoredRun) else ScoredRun(run).run_dir
    manifest = read_manifest(source)
    if manifest is None or not (source / REFERENCE).is_file():
        raise InputError(
            f"{source} keeps no manifest.json or no {REFERENCE}, which scores are worked out with; "
            "restore them, or score the neurons anew."
        )
    known = dict(manifest.settings["scoring"])
    changed = {
        "strength": strength,
        "max_clusters": max_clusters,
        "restarts": restarts,
        "selection": selection,
        "backend": clustering,
    }
    scorer = Scorer(
        **known | {name: value for name, value in changed.items() if value is not None},
        kernels=kernels,
    )
    most = int(manifest.settings["rounds"]["max_images"])
    if images is not None and images < 1:
        raise InputError(f"images has to be at least 1, got {images}.")
    kept = most if images is None else min(images, most)
    where = _device(manifest, device)
    with isolated():
        reference = Reference.load(source / REFERENCE).to(where)
        is_temporary = run_dir is None
        folder = Path(tempfile.mkdtemp(prefix="polylight-") if run_dir is None else run_dir)
        folder = folder.expanduser()
        fresh = _fresh(manifest, scorer, kept)
        names = ScoredRun(source).neurons
        try:
            with RunSession(folder, fresh, names) as session:
                for rows in _batches(stream_rows(part_paths(source))):
                    rows = [row for row in rows if row.neuron not in session.finished]
                    if rows:
                        before = known["strength"]
                        session.append(_rescored(rows, reference, scorer, kept, before, where))
                if not (folder / REFERENCE).exists():
                    shutil.copyfile(source / REFERENCE, folder / REFERENCE)
                session.record("finished")
        except BaseException:
            if is_temporary:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return ScoredRun(folder, is_temporary=is_temporary)


def _device(manifest: Manifest, given: str | torch.device | None) -> torch.device:
    """The device that is given, or one of the run's kind where there is one."""
    if given is not None or manifest.device.get("name") not in ("cpu", "mps"):
        return as_device(given)
    return torch.device("cpu")


def _fresh(manifest: Manifest, scorer: Scorer, images: int) -> Manifest:
    """The manifest of the new run: another scoring, and no cost so far."""
    rounds = manifest.settings["rounds"]
    rounds = {**rounds, "max_images": images, "min_images": min(rounds["min_images"], images)}
    return Manifest(
        device=manifest.device,
        subject=manifest.subject,
        embedder=manifest.embedder,
        reference_hash=manifest.reference_hash,
        seed=manifest.seed,
        settings={**manifest.settings, "scoring": scorer.settings(), "rounds": rounds},
    )


def _batches(rows: Iterator[NeuronRow]) -> Iterator[list[NeuronRow]]:
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch


def _rescored(
    rows: Sequence[NeuronRow],
    reference: Reference,
    scorer: Scorer,
    images: int,
    strength: float,
    device: torch.device,
) -> list[NeuronRow]:
    """Score the first images of some neurons; ``strength`` is what they were scored with."""
    stored = [_first_images(row, images, strength, device) for row in rows]
    is_same = scorer.strength == strength and all(row.num_images <= images for row in rows)
    valid = [torch.from_numpy(row.label >= 0).to(device) for row in rows] if is_same else None
    scored = scorer.score(stored, reference, max_images=images, seed=rows[0].seed, valid=valid)
    made = []
    for row, columns in zip(rows, scored, strict=True):
        count = min(images, row.num_images)
        first: dict[str, Any] = {
            name: getattr(row, name)[:count]
            for name in ("activation", "component", "embedding", "layer_input", "image")
        }
        made.append(dataclasses.replace(row, **first, **columns, q_value=None, num_images=count))
    return made


def _first_images(row: NeuronRow, count: int, strength: float, device: torch.device) -> _Stored:
    def first(values: Any) -> Tensor:
        return as_tensor(values[:count], "values").to(device)

    inactive = _inactive(row, strength)[:count]
    return _Stored(
        neuron=row.neuron,
        embeddings=first(row.embedding),
        layer_input=first(row.layer_input),
        activations=first(row.activation),
        baseline=row.baseline,
        inactive=inactive.to(device),
    )


def _inactive(row: NeuronRow, strength: float) -> Tensor:
    """Which images the neuron's rectifier held at zero, bool [N]: what explains its labels.

    A rectified neuron that is silent reads a value below zero (:func:`ascent.objective.read`).
    """
    activation, valid = as_tensor(row.activation, "activation"), torch.from_numpy(row.label >= 0)
    baseline = activation.new_tensor([row.baseline])
    for guess in (activation <= 0, torch.zeros_like(valid)):
        there = (activation.isfinite() & ~guess)[None]
        if torch.equal(strength_gate(activation[None], there, baseline, strength)[0], valid):
            return guess
    return ~valid
