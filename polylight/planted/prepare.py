"""Everything that a validation is given, loaded and checked before any work."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.networks import Model, load_model
from polylight.networks.subject import Subject
from polylight.photos.folder import PhotoFolder
from polylight.planted.neurons import Sizes, Split
from polylight.planted.outcome import MOST_CONDITIONS, POOLED, VIEWS
from polylight.planted.plan import LayerPlan, SubjectPlan, plan_layers
from polylight.reference import ReferenceSettings
from polylight.scoring.scorer import Scorer

_logger = logging.getLogger(__name__)
_BATCH = 16
_FEWEST_PHOTOS = 3
# What is scored beside the conditions that are given.
_OWN = (POOLED, *VIEWS)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the images of a subject's neurons are made and scored.

    Attributes:
        arguments: Of the module: networks, weights and settings, all but the seed.
        frame: How the reference that images are compared by is made.
        scorer: How images become a score.
    """

    arguments: Mapping[str, Any]
    frame: ReferenceSettings
    scorer: Scorer


@dataclass(frozen=True)
class Photos:
    """What a folder of photos tells of the channels of some layers.

    Attributes:
        count: Photos that could be read.
        pooled: By layer, mean activation of each channel for each photo, [N, C].
        screened: By channel as text, whether it is among the more monosemantic half of its layer
            (:func:`screen_channels`).
    """

    count: int
    pooled: Mapping[str, Tensor]
    screened: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class PreparedSubject:
    """A subject with its networks, conditions and planted neurons.

    Attributes:
        plan: What was asked for.
        model: The subject.
        embedder: The network that embeds images.
        second_embedder: Another one, to compare with; None for none.
        conditions: By name; the first is the one that is validated.
        layers: What was planted.
        photos: None where none were given.
    """

    plan: SubjectPlan
    model: Model
    embedder: Model
    second_embedder: Model | None
    conditions: Mapping[str, Condition]
    layers: Sequence[LayerPlan]
    photos: Photos | None


def prepare(
    plans: Sequence[SubjectPlan],
    conditions: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    sizes: Sizes,
    seed: int,
    split: Split,
    images: str | None,
    device: torch.device,
) -> list[PreparedSubject]:
    """Load the subjects, plant their neurons, and check every setting.

    Args:
        plans: The subjects.
        conditions: By name, settings of the model in which a condition differs from the shared
            ones; the first condition is the one that is validated.
        shared: Settings of all conditions; what is not set is the default of ``polylight fit``.
        sizes: How many neurons of each kind a layer gives.
        seed: Of the choice of neurons.
        split: Which channels are used.
        images: Folder of photos; None for none.
        device: Where the runs will work.

    Returns:
        The subjects.

    Raises:
        InputError: If something cannot be used.
    """
    if not plans:
        raise InputError("no subjects are given; give at least one, with its layers.")
    _refuse_twice("subject", [plan.subject for plan in plans])
    _refuse_twice("condition", list(conditions))
    for name in _OWN:
        if name in conditions:
            raise InputError(f"no condition can be called '{name}', which is a control's name.")
    if len(conditions) + len(_OWN) > MOST_CONDITIONS:
        raise InputError(
            f"{len(conditions)} conditions are more than the {MOST_CONDITIONS - len(_OWN)} that a "
            "figure can tell apart; give fewer."
        )
    # Subjects that see them at one size share them.
    read = cache(lambda side: read_photos(images, side)) if images else None
    return [_prepare(plan, conditions, shared, sizes, seed, split, read, device) for plan in plans]


def file_name(*words: str) -> str:
    """A name for a file from any words."""
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    for name, count in Counter(map(file_name, names)).items():
        if count > 1:
            raise InputError(f"{what} '{name}' is given {count} times; give each once.")


def _prepare(
    plan: SubjectPlan,
    conditions: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    sizes: Sizes,
    seed: int,
    split: Split,
    read: Callable[[int], Tensor] | None,
    device: torch.device,
) -> PreparedSubject:
    _refuse_twice(f"layer of {plan.subject},", plan.layers)
    own = [
        f"{who}{what}" for who in ("subject", "embedder") for what in ("", "_weights", "_options")
    ]
    modules, prepared = [], {}
    for name, settings in conditions.items():
        for key in {*settings, *shared} & {*own, "seed"}:
            raise InputError(f"'{key}' belongs to the subject, not into condition '{name}'.")
        arguments = {key: getattr(plan, key) for key in own} | {**shared, **settings}
        try:
            module = PolysemanticityModule(**arguments)
        except TypeError as error:
            raise InputError(f"condition '{name}' cannot be used: {error}.") from error
        if module.is_plain or module.scorer.reported_score != "score":
            raise InputError(
                f"condition '{name}' cannot be used: validate compares centred embeddings and "
                "reports 'score'. Leave embedding and reported_score out; the score of Alic et al. "
                "(2025) is compared beside it in every condition."
            )
        # It says what the device cannot do.
        module.manifest(device)
        modules.append(module)
        prepared[name] = Condition(
            arguments=arguments, frame=module.reference_settings, scorer=module.scorer
        )
    first, second = modules[0], None
    if plan.second_embedder is not None:
        second = load_model(plan.second_embedder, plan.second_weights)
    for network in (first.embedder_model, second):
        if network is not None:
            # It says what it cannot embed with.
            Embedder(network)
    photos = None
    if read:
        shown = read(first.parametrization.size)
        pooled = pooled_activations(first.subject_model, plan.layers, shown)
        photos = Photos(len(shown), pooled, screen_channels(first.embedder_model, shown, pooled))
    return PreparedSubject(
        plan=plan,
        model=first.subject_model,
        embedder=first.embedder_model,
        second_embedder=second,
        conditions=prepared,
        layers=plan_layers(
            first.subject_model,
            plan.layers,
            first.parametrization,
            first.parametrization.size,
            sizes,
            seed,
            split,
            photos.screened if photos else None,
        ),
        photos=photos,
    )


def read_photos(folder: str | Path, side: int) -> Tensor:
    """Read the photos of a folder, all at once (:class:`polylight.photos.folder.PhotoFolder`).

    Args:
        folder: Where they are.
        side: Photos are resized to it by their shorter side and cropped to the middle, pixels.

    Returns:
        float32 [N, 3, side, side] in [0, 1], by file name.

    Raises:
        InputError: If the folder does not exist, or not one photo can be read.
    """
    found = [pixels for _, (pixels,) in PhotoFolder(folder, "--images").read([side])]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous() / 255.0


@torch.no_grad()
def pooled_activations(model: Model, layers: Sequence[str], photos: Tensor) -> dict[str, Tensor]:
    """Mean activation of every channel of some layers for each photo, on the CPU.

    Args:
        model: The network.
        layers: Names of its layers.
        photos: float32 [N, 3, H, W] in [0, 1].

    Returns:
        By layer, float32 [N, C].
    """
    taps = Subject(model, layers, photos.shape[-1])
    pooled: dict[str, list[Tensor]] = {name: [] for name in taps.layers}
    for batch in torch.split(photos, _BATCH):
        for index, activation in taps(batch).items():
            post = activation.post
            mean = post.flatten(2).mean(2) if post.ndim > 2 else post
            pooled[taps.layers[index]].append(mean.float())
    return {name: torch.cat(batches) for name, batches in pooled.items()}


@torch.no_grad()
def screen_channels(
    embedder: Model, photos: Tensor, pooled: Mapping[str, Tensor]
) -> dict[str, bool]:
    """Find the channels that have one feature by a measure that is independent of ours.

    One minus the monosemanticity score of Pach et al. 2025 over the photos, whose embeddings are
    centred on their mean: the half of a layer's channels for which it is lowest.

    Args:
        embedder: The network that embeds the photos.
        photos: float32 [N, 3, H, W] in [0, 1].
        pooled: By layer, activations of the photos [N, C].

    Returns:
        By channel as text, whether it is in the lower half of its layer.
    """
    if len(photos) < _FEWEST_PHOTOS:
        _logger.warning("%d photos are too few to screen channels by", len(photos))
        return {}
    embed = Embedder(embedder)
    embedded = torch.cat([embed(batch) for batch in torch.split(photos, _BATCH)])
    unit = F.normalize((embedded - embedded.mean(0)).double(), dim=1)
    screened = {}
    for layer, activations in pooled.items():
        scores = _one_minus_ms(unit, activations.double())
        median = scores.nanmedian().item()
        for channel, score in enumerate(scores.tolist()):
            screened[f"{layer}:{channel}"] = score <= median
    return screened


def _one_minus_ms(unit: Tensor, activations: Tensor) -> Tensor:
    """One minus the weighted mean cosine of two photos for each channel, [C].

    As :func:`polylight.scoring.weighted_ms_score` of each, in one product: with weights a that
    run from 0 to 1, the sum over pairs is ``|sum a_n e_n|^2 - sum a_n^2``.
    """
    low, high = activations.amin(0), activations.amax(0)
    weight = (activations - low) / (high - low)  # [N, C], NaN for a channel that never moves
    square = weight.square().sum(0)
    similar = (weight.mT @ unit).square().sum(1) - square
    score = 1.0 - similar / (weight.sum(0).square() - square)
    # One photo alone makes no pair.
    return score.masked_fill((weight > 0).sum(0) < 2, torch.nan)
