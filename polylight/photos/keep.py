"""A run's neurons and its photos: what is missing is measured, and kept in the run's directory."""

import gc
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polylight.ascent.engine import Engine
from polylight.ascent.objective import Scale
from polylight.ascent.scheduler import Scheduler
from polylight.data import NeuronDataModule
from polylight.embedding.embedder import Embedder
from polylight.module import PolysemanticityModule
from polylight.neurons import Component, Neuron
from polylight.photos.folder import PhotoFolder
from polylight.photos.measure import describe_photos, strongest_photos
from polylight.photos.store import Photo, PhotoRanking, measured, remove_others, write_pair
from polylight.reference import load_or_make_reference
from polylight.run.store import RunStore, read_run

_logger = logging.getLogger(__name__)


def keep_photos(
    module: PolysemanticityModule, data: NeuronDataModule, run_dir: Path, device: torch.device
) -> None:
    """Show the photos of a run to those of its neurons that have not seen them, and keep the best.

    Call it when the neurons are finished: all of them are on the disk, and stay as they are.

    Args:
        module: Of the run; its pool is given up.
        data: The run's neurons and photos.
        run_dir: The run's directory.
        device: Where to work.

    Raises:
        InputError: If another process writes as this rank, or something cannot be read.
    """
    folder = data.photos
    if folder is None:
        return
    store = RunStore(run_dir, data.rank)
    try:
        key = folder.key
        done = measured(run_dir, key)
        neurons = [neuron for neuron in data.neurons if str(neuron) not in done]
        if neurons:
            _logger.info(
                "showing the %d files of %s to %d neurons",
                len(folder.names),
                folder.path,
                len(neurons),
            )
            _give_up_pool(module)
            scales = _scales(module, data.queue, neurons, device)
            medians = _medians(run_dir, neurons)
            rankings = _rank(module, neurons, scales, medians, folder, device)
            photos = _describe(module, rankings, folder, device)
            write_pair(run_dir, data.rank, key, photos, rankings)
        remove_others(run_dir, data.rank, key)
    finally:
        store.close()


def _give_up_pool(module: PolysemanticityModule) -> None:
    """Let go of what the ascent held: on a GPU, nearly all of the memory."""
    module.engine = module.pool = None
    # The graphs of a pool hold the pool.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _scales(
    module: PolysemanticityModule,
    queue: Scheduler | None,
    neurons: Sequence[Neuron],
    device: torch.device,
) -> Mapping[Component, Scale]:
    """The range of the components of composites, probed again where an earlier session did so."""
    known = dict(queue.scales) if queue else {}
    composites = [n for n in neurons if n.operation and not known.keys() >= set(n.components)]
    if not composites:
        return known
    if module.reference is None:
        module.reference = load_or_make_reference(
            module.subject_model, module.embedder_model, module.recipe, device
        )
    pool = module.make_pool(composites, device)
    optimizer = pool.configure_optimizer()
    again = Scheduler(composites, module.rounds, pool.size)
    embedder = Embedder(module.embedder_model).to(device)
    engine = Engine(pool, again, embedder, None, None, module.seed, module.watch)
    components = {component for neuron in composites for component in neuron.components}
    # Probes come first; whatever climbs beside the last of them is left.
    while not again.scales.keys() >= components:
        engine.turn(module.steps_per_batch, optimizer.step)
    return {**known, **again.scales}


def _medians(run_dir: Path, neurons: Sequence[Neuron]) -> list[float]:
    """Median activation of the images of each neuron that are valid, NaN where there is none."""
    names = [str(neuron) for neuron in neurons]
    rows = read_run(run_dir, ["neuron", "activation", "label"], names).to_pylist()
    medians = dict.fromkeys(names, float("nan"))
    for row in rows:
        valid = np.array(row["activation"], dtype=np.float64)[np.array(row["label"]) >= 0]
        if len(valid):
            medians[row["neuron"]] = float(np.median(valid))
    return [medians[name] for name in names]


def _rank(
    module: PolysemanticityModule,
    neurons: Sequence[Neuron],
    scales: Mapping[Component, Scale],
    medians: Sequence[float],
    folder: PhotoFolder,
    device: torch.device,
) -> list[PhotoRanking]:
    """Find the strongest photos of each neuron."""
    if module.subject is None:
        raise RuntimeError("the neurons were resolved, and with them the subject was cut")
    subject = module.subject.to(device)
    found = strongest_photos(subject, neurons, scales, medians, folder)
    rankings = []
    for i, neuron in enumerate(neurons):
        strong = found.activation[i] > -torch.inf
        count, is_known = int(found.finite[i]), not math.isnan(medians[i])
        rankings.append(
            PhotoRanking(
                neuron=str(neuron),
                num_photos=count,
                share_below=int(found.below[i]) / count if count and is_known else None,
                photo=found.photo[i][strong].tolist(),
                activation=found.activation[i][strong].tolist(),
            )
        )
    return rankings


def _describe(
    module: PolysemanticityModule,
    rankings: Sequence[PhotoRanking],
    folder: PhotoFolder,
    device: torch.device,
) -> Iterator[list[Photo]]:
    """Embed the photos that some neuron needs, as its images are."""
    chosen = sorted({photo for ranking in rankings for photo in ranking.photo})
    embedder = Embedder(module.embedder_model).to(device)
    return describe_photos(embedder, folder, chosen, module.parametrization.size, device)
