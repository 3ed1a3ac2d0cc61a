"""Read a run for a report: the numbers of all its neurons at once, their images one by one."""

import math
import re
import statistics
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits

from polylight.errors import InputError
from polylight.inspect.neuron_table import SCALARS
from polylight.photos.above import ABOVE_PHOTOS, above_photos
from polylight.report.content import (
    LayerSummary,
    NeuronDetail,
    NeuronSummary,
    Run,
    RunPhotos,
    RunState,
    Similar,
    Unreadable,
)
from polylight.report.detail import neuron_detail
from polylight.report.photos import read_photos, with_photos
from polylight.report.vectors import (
    centred,
    cluster_centres,
    joined,
    most_similar,
    read_centre,
)
from polylight.report.words import slug
from polylight.run.false_discovery import q_values
from polylight.run.manifest import Manifest, manifest_path, read_manifest
from polylight.run.parts import PartError, read_groups
from polylight.run.reported import ReportedScore, reported_score
from polylight.run.schema import NeuronRow
from polylight.run.store import NEURONS_DIR, part_paths, stream_rows

THUMB = 96
"""Side of an image in a thumbnail, in pixels."""

_SIMILAR = 6
_MANIFEST = re.compile(r"manifest(?:-(\d{5}))?\.json")
_SHARD = re.compile(r"""^\s+shard:\s*['"]?\d{1,5}/(\d{1,5})['"]?\s*$""", re.MULTILINE)
_COLUMNS = (*SCALARS, "activation", "label", "cluster_weight", "embedding")
# Of several ranks the first of these holds for the run.
_STATES: tuple[Literal["running", "interrupted", "finished"], ...] = (
    "running",
    "interrupted",
    "finished",
)
# Decoding and encoding pictures takes most of the time, and PIL lets other threads run meanwhile.
_THREADS = 2
_AHEAD = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What is kept of a row: its numbers, and directions of its clusters instead of its images."""

    values: dict[str, Any]
    median_activation: float | None
    valid_activation: npt.NDArray[np.float32]
    weights: Sequence[float]
    centres: npt.NDArray[np.float32]


def gather_run(run_dir: str | Path) -> Run:
    """Read the numbers of a run, and find which of its neurons are similar.

    Parts and manifests that cannot be read are listed, and the rest is shown. Of a neuron that is
    there twice the first row wins. The ``q_value`` is worked out from the neurons that are there.

    Args:
        run_dir: The run's directory.

    Returns:
        The run without its images.

    Raises:
        InputError: If there is no such directory, or nothing in it that could be shown.
    """
    path = Path(run_dir)
    centre, lost = read_centre(path)
    photos, lost_photos = read_photos(path, centre)
    found, unreadable = _read_neurons(path, centre)
    if not found:
        raise InputError(_nothing(path, unreadable))
    ranks = sorted(int(m[1] or 0) for p in path.iterdir() if (m := _MANIFEST.fullmatch(p.name)))
    manifest, state, broken = _read_manifests(path, ranks)
    num_shards = _num_shards(path)
    ordered, layers = _order(list(found.values()))
    dims = sorted({neuron.centres.shape[1] for neuron in ordered if len(neuron.centres)})
    if len(dims) > 1:
        raise InputError(
            f"the neurons of {path} have embeddings of {', '.join(map(str, dims))} dimensions, but "
            f"a run has one embedder; move the parts of the others out of {path / NEURONS_DIR}"
        )
    similar = most_similar([neuron.centres for neuron in ordered], _SIMILAR)
    p = [neuron.values["p_value"] for neuron in ordered]
    q = q_values(
        [math.nan if value is None else value for value in p],
        [neuron.values["layer"] for neuron in ordered],
    )
    reported = reported_score(manifest)
    return Run(
        name=path.resolve().name,
        path=path,
        state=state,
        manifest=manifest,
        unreadable=[*unreadable, *broken, *lost, *lost_photos],
        num_shards=num_shards,
        missing_shards=max(0, num_shards - len(ranks)) if ranks else 0,
        centre=centre,
        photos=photos,
        layers=layers,
        neurons=[
            _summary(position, *each, reported, photos)
            for position, each in enumerate(zip(ordered, q.tolist(), similar, strict=True))
        ],
        reported=reported,
    )


def read_details(
    run: Run, positions: Collection[int] | None = None
) -> Iterator[tuple[NeuronSummary, NeuronDetail]]:
    """Read the images of a run and work out what the pages of its neurons show.

    Args:
        run: The run.
        positions: The neurons wanted, as positions in ``run.neurons``; None for all.

    Yields:
        Each neuron once, in the order in which the run wrote them; a few are in memory at a time.

    Raises:
        InputError: If a part cannot be read any more.
    """
    chosen = range(len(run.neurons)) if positions is None else positions
    wanted = {run.neurons[position].name: run.neurons[position] for position in chosen}
    if not wanted:
        return
    broken = {part.path for part in run.unreadable if not part.is_partial}
    paths = [path for path in part_paths(run.path) if path not in broken]
    names = None if positions is None else wanted.keys()
    ahead: deque[tuple[NeuronSummary, Future[NeuronDetail]]] = deque()
    # Matrices of this size are through before threads of BLAS's own have met, and those would
    # spin on the cores that pictures need.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_THREADS, "polylight-report") as threads:
        for part, stored in _stream(paths, names):
            # A run that goes on has neurons that were not there when it was gathered.
            summary = wanted.pop(stored.neuron, None)
            if summary is not None:
                row = replace(stored, embedding=centred(stored.embedding, run.centre))
                ahead.append((summary, threads.submit(_detail, row, run.photos, part)))
            if len(ahead) == _AHEAD:
                summary, detail = ahead.popleft()
                yield summary, detail.result()
            if not wanted:
                break
        for summary, detail in ahead:
            yield summary, detail.result()
    if wanted:
        raise InputError(
            f"{run.path} no longer holds {next(iter(wanted))}; "
            "were its parts moved while the report was made? Make the report again"
        )


def _stream(
    paths: Sequence[Path], names: Collection[str] | None
) -> Iterator[tuple[Path, NeuronRow]]:
    """Read rows, each with the part that it comes from."""
    for path in paths:
        for row in stream_rows([path], names):
            yield path, row


def _detail(row: NeuronRow, photos: RunPhotos | None, part: Path) -> NeuronDetail:
    """Work out what a neuron's page shows."""
    # Of photos there is only what the embedder sees.
    both = replace(row, embedding=joined(row.embedding, row.layer_input))
    return with_photos(neuron_detail(both, THUMB, part), row, photos)


def _read_neurons(
    path: Path, centre: npt.NDArray[np.float32] | None
) -> tuple[dict[str, _Found], list[Unreadable]]:
    """Read the parts of a run one by one, as far as they can be read."""
    found: dict[str, _Found] = {}
    unreadable = []
    for part in part_paths(path):
        try:
            rows = [row for group in read_groups(part, _COLUMNS) for row in _reduce(group, centre)]
        except PartError as error:
            unreadable.append(Unreadable(path=error.path, reason=error.reason))
            continue
        for row in rows:
            found.setdefault(row.values["neuron"], row)
    return found, unreadable


def _reduce(group: pa.Table, centre: npt.NDArray[np.float32] | None) -> Iterator[_Found]:
    """Keep of each row of a group what fits in memory for all neurons."""
    for i, values in enumerate(group.select(list(SCALARS)).to_pylist()):
        activation, label = (
            group[name][i].values.to_numpy(zero_copy_only=False) for name in ("activation", "label")
        )
        vectors = group["embedding"][i].values.flatten().to_numpy(zero_copy_only=False)
        embedding = vectors.reshape(len(label), -1) if len(label) else np.zeros((0, 0))
        weight = group["cluster_weight"][i].values.to_numpy(zero_copy_only=False)
        present = np.unique(label[label >= 0])
        driven = activation[np.isfinite(activation)].tolist()
        yield _Found(
            values={name: _known(value) for name, value in values.items()},
            median_activation=statistics.median(driven) if driven else None,
            valid_activation=activation[label >= 0],
            weights=sorted((float(weight[cluster]) for cluster in present), reverse=True),
            centres=cluster_centres(centred(embedding, centre), label).astype(np.float32),
        )


def _known(value: Any) -> Any:
    """Make of a NaN what it means: that there is no value."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _nothing(path: Path, unreadable: Sequence[Unreadable]) -> str:
    """Say why a run cannot be shown."""
    if unreadable:
        first = unreadable[0]
        more = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
        return (
            f"nothing of {path} can be read: {first.path}{more}: {first.reason}; restore its "
            "parts, or run the same fit again in another --run_dir"
        )
    if (path / NEURONS_DIR).is_dir():
        return f"{path} holds no finished neuron yet; wait for the first or look at its log"
    return f"{path} is not the directory of a run: expected {NEURONS_DIR}/part-*.parquet in it"


def _num_shards(path: Path) -> int:
    """Find among how many processes a run was divided; 1 where it did not keep that."""
    try:
        # A configuration may be large, and is parsed for this one setting alone.
        match = _SHARD.search((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return 1
    return int(match[1]) if match else 1


def _read_manifests(
    path: Path, ranks: Sequence[int]
) -> tuple[Manifest | None, RunState, list[Unreadable]]:
    """Add the manifests of all ranks up, as far as they can be read."""
    manifests, broken = [], []
    for rank in ranks:
        try:
            found = read_manifest(path, rank)
        except InputError as error:
            broken.append(Unreadable(path=manifest_path(path, rank), reason=str(error)))
        else:
            manifests += [found] if found else []
    if not manifests:
        return None, "unknown", broken
    whole = manifests[0]
    for other in manifests[1:]:
        whole = whole.advance(
            neurons=other.neurons,
            images=other.images,
            image_steps=other.image_steps,
            slot_steps=other.slot_steps,
            seconds=other.seconds,
        )
    status = {manifest.status for manifest in manifests}
    whole = replace(
        whole,
        status=next(s for s in _STATES if s in status),
        updated=max(manifest.updated for manifest in manifests),
    )
    return whole, whole.status, broken


def _order(found: Sequence[_Found]) -> tuple[list[_Found], list[LayerSummary]]:
    """Sort neurons by layer and channel, and list the layers."""
    layers: dict[str, list[_Found]] = {}
    for neuron in found:
        layers.setdefault(neuron.values["layer"], []).append(neuron)
    # Those of composites over several layers last.
    names = sorted(layers, key=lambda name: "," in name)
    ordered: list[_Found] = []
    summaries = []
    for name in names:
        positions = range(len(ordered), len(ordered) + len(layers[name]))
        summaries.append(LayerSummary(name=name, slug=slug(name), positions=positions))
        ordered += sorted(layers[name], key=_rank)
    return ordered, summaries


def _rank(neuron: _Found) -> tuple[bool, int, list[tuple[int, str]]]:
    """Rank a neuron in its layer: composites last, numbers in a name by their size."""
    channel, name = neuron.values["channel"], neuron.values["neuron"]
    pieces = [
        (int(piece) if piece.isdecimal() else -1, piece) for piece in re.split(r"(\d+)", name)
    ]
    return channel is None, channel or 0, pieces


def _summary(
    position: int,
    neuron: _Found,
    q_value: float,
    similar: Sequence[Similar],
    reported: ReportedScore,
    photos: RunPhotos | None,
) -> NeuronSummary:
    """Sum a neuron up."""
    values = {**neuron.values, "q_value": _known(q_value)}
    if photos is not None:
        _, ranking = photos.rankings.get(values["neuron"], (None, None))
        values[ABOVE_PHOTOS] = above_photos(neuron.valid_activation, ranking)
    return NeuronSummary(
        position=position,
        slug=slug(neuron.values["neuron"]),
        values=values,
        median_activation=neuron.median_activation,
        weights=neuron.weights,
        similar=similar,
        reported=reported,
    )
