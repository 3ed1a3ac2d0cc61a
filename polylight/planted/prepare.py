"""Everything that a validation is told, checked before any work."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.networks import Model, load_model
from polylight.planted.collect import POOLED, VIEWS
from polylight.planted.photos import Photos, look_at, read_photos
from polylight.planted.plan import LayerPlan, Sizes, SubjectPlan, plan_layers
from polylight.planted.plot import MOST_RECIPES
from polylight.reference import ReferenceSettings
from polylight.scoring.scorer import Scorer

# What is shown beside the recipes that are given.
_OWN = 1 + len(VIEWS)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recipe for a subject: what its module is built from, its frame, how images are scored."""

    arguments: Mapping[str, Any]
    frame: ReferenceSettings
    scorer: Scorer


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A subject with its networks, recipes and planted neurons."""

    plan: SubjectPlan
    model: Model
    embedder: Model
    second: Model | None
    setups: Mapping[str, Setup]
    layers: Sequence[LayerPlan]
    photos: Photos | None


def prepare(
    plans: Sequence[SubjectPlan],
    recipes: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    sizes: Sizes,
    seed: int,
    half: Literal["all", "tune", "report"],
    images: str | None,
    device: torch.device,
) -> list[Ready]:
    """Load the subjects, plan their neurons, and look at every setting.

    Args:
        plans: The subjects.
        recipes: Settings of the model by recipe, the first ours.
        shared: Settings of all recipes.
        sizes: How many neurons of each kind a layer gives.
        seed: Of the draw of neurons.
        half: Which half of the channels is used.
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
    _refuse_twice("recipe", list(recipes))
    for name in (POOLED, *VIEWS):
        if name in recipes:
            raise InputError(f"no recipe can be called '{name}', which is a control's name.")
    if len(recipes) + _OWN > MOST_RECIPES:
        raise InputError(
            f"{len(recipes)} recipes are more than the {MOST_RECIPES - _OWN} that a figure can "
            "tell apart; give fewer."
        )
    # Subjects that see them at one size share them.
    read = cache(lambda side: read_photos(images, side)) if images else None
    return [_ready(plan, recipes, shared, sizes, seed, half, read, device) for plan in plans]


def file_name(*words: str) -> str:
    """A name for a file from any words."""
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    for name, count in Counter(map(file_name, names)).items():
        if count > 1:
            raise InputError(f"{what} '{name}' is given {count} times; give each once.")


def _ready(
    plan: SubjectPlan,
    recipes: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    sizes: Sizes,
    seed: int,
    half: Literal["all", "tune", "report"],
    read: Callable[[int], torch.Tensor] | None,
    device: torch.device,
) -> Ready:
    own = {
        "subject": plan.subject,
        "embedder": plan.embedder,
        "subject_weights": plan.subject_weights,
        "embedder_weights": plan.embedder_weights,
    }
    _refuse_twice(f"layer of {plan.subject},", plan.layers)
    modules = {}
    for name, settings in recipes.items():
        for key in {*settings, *shared} & {*own, "seed"}:
            raise InputError(f"'{key}' belongs to the subject, not into recipe '{name}'.")
        arguments = {**own, **shared, **settings}
        try:
            module = PolysemanticityModule(**arguments)
        except TypeError as error:
            raise InputError(f"recipe '{name}' cannot be used: {error}.") from error
        module.manifest(device)
        modules[name] = module
    first = next(iter(modules.values()))
    second = None
    if plan.second_embedder is not None:
        second = load_model(plan.second_embedder, plan.second_weights)
    # They say what they cannot be used for.
    for network in (first.embedder_model, second):
        if network is not None:
            Embedder(network)
    photos = None
    if read:
        photos = look_at(read(first.canvas), first.subject_model, plan.layers, first.embedder_model)
    return Ready(
        plan=plan,
        model=first.subject_model,
        embedder=first.embedder_model,
        second=second,
        setups={
            name: Setup(
                arguments={**own, **shared, **recipes[name]},
                frame=module.reference_settings,
                scorer=module.scorer,
            )
            for name, module in modules.items()
        },
        layers=plan_layers(
            first.subject_model,
            plan.layers,
            first.parametrization,
            first.canvas,
            sizes,
            seed,
            half,
            photos.screened if photos else None,
        ),
        photos=photos,
    )
