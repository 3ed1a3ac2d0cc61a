"""The pieces that come after images: embed them, cluster their embeddings, score those."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from polylight.api.arguments import EMBEDDER, as_device
from polylight.clustering import Selection
from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.isolation import isolated
from polylight.networks import Model
from polylight.networks.load import as_model
from polylight.photos.folder import square
from polylight.scoring import polysemanticity_score, score_uncertainty
from polylight.scoring.points import Numbers, as_tensor
from polylight.scoring.scorer import Scorer

_BATCH = 32
# Two unrelated features leave a half; one that is not centred away leaves more.
_COMMON = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingClusters:
    """How the images of a neuron fall into clusters.

    Attributes:
        labels: int64 [N], cluster of each image; the largest is 0.
        k: Number of clusters; 1 where one is likelier than several.
        shares: float64 [k], share of each cluster; sum 1.
        bic: float64 [max_clusters], criterion of K = 1, 2, ... in nats; NaN where out of reach.
        separation: How much better the images fall into clusters than those of a single mode, in
            standard deviations; from 4 on several clusters are likelier. NaN of fewer than four.
        p_value: Probability of as good a split under a single mode, in (0, 1].
    """

    labels: npt.NDArray[np.int64]
    k: int
    shares: npt.NDArray[np.float64]
    bic: npt.NDArray[np.float64]
    separation: float
    p_value: float


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingScore:
    """How polysemantic a neuron is by the embeddings of its images.

    Attributes:
        score: Polysemanticity, in [0, 1].
        interval: 95 % interval of the score.
        k_eff: Effective number of features, 1 / (1 - score).
        clusters: What it rests on.
    """

    score: float
    interval: tuple[float, float]
    k_eff: float
    clusters: EmbeddingClusters


def embed(
    images: Numbers | Sequence[Image.Image],
    *,
    embedder: str | nn.Module | Model = EMBEDDER,
    device: str | torch.device | None = None,
) -> npt.NDArray[np.float32]:
    """Embed images as a run embeds those of its neurons.

    Args:
        images: A list of PIL images, of any sizes, each cropped to its middle; uint8
            [N, H, H, 3] or [N, 3, H, H]; or float [N, 3, H, H] in [0, 1].
        embedder: A network in memory or the name of one.
        device: Where to work; unless given the GPU that the embedder is on, else the first one,
            else the CPU.

    Returns:
        float32 [N, D], raw: of unrelated images they share a large mean.

    Raises:
        InputError: If the images or the network cannot be used.
    """
    with isolated(), torch.no_grad():
        net = Embedder(as_model(embedder)).to(where := as_device(device, embedder))
        batches = torch.split(_as_images(images, net.size), _BATCH)
        found = [net(_as_float(batch).to(where)).cpu() for batch in batches]
    return torch.cat(found).numpy()


def cluster(
    embeddings: Numbers,
    *,
    center: Numbers | float | None = None,
    selection: Selection = "bic",
    max_clusters: int = 8,
    restarts: int = 32,
    seed: int = 0,
) -> EmbeddingClusters:
    """Cluster the embeddings of a neuron's images, as the score does.

    Args:
        embeddings: float [N, D]; they are l2-normalised once they are centred.
        center: As for :func:`score_embeddings`, like the others.
        selection: Likewise.
        max_clusters: Likewise.
        restarts: Likewise.
        seed: Likewise.

    Returns:
        The clusters.

    Raises:
        InputError: If the embeddings or a setting cannot be used.

    Warns:
        UserWarning: As :func:`score_embeddings`.
    """
    how = Scorer(selection=selection, max_clusters=max_clusters, restarts=restarts)
    return _scored(_centred(embeddings, center), None, 0.0, how, seed).clusters


def score_embeddings(
    embeddings: Numbers,
    activations: Numbers | None = None,
    *,
    center: Numbers | float | None = None,
    baseline: float = 0.0,
    selection: Selection = "bic",
    max_clusters: int = 8,
    restarts: int = 32,
    seed: int = 0,
) -> EmbeddingScore:
    """Score how polysemantic a neuron is by embeddings of images that drive it.

    Args:
        embeddings: float [N, D], of NumPy or torch; they are l2-normalised once they are centred.
        activations: float [N], how strongly each image drives the neuron; None for all alike.
        center: What is taken from the embeddings: the mean embedding [D] of many unrelated images,
            or 0 where that has been done. Embeddings of unrelated images share a large mean,
            which makes them look alike and hides clusters.
        baseline: Activation of random images: what is not above it counts for nothing.
        selection: What chooses the number of clusters: ``bic``, ``xmeans``, ``gmeans`` or
            ``sigclust``.
        max_clusters: Largest number of clusters that is tried.
        restarts: Starts of k-means for each number.
        seed: Of the starts.

    Returns:
        The score, its interval and the clusters.

    Raises:
        InputError: If a shape does not fit, a value is NaN or infinite, no activation is above the
            baseline, or a setting cannot be used.

    Warns:
        UserWarning: If no centre is given and most of what the embeddings hold is common to all.

    Example:
        >>> import numpy as np
        >>> import polylight
        >>> rng = np.random.default_rng(0)
        >>> x = np.eye(16)[[0] * 8 + [1] * 8] + rng.normal(0, 0.05, (16, 16))
        >>> round(polylight.score_embeddings(x, center=0).score, 1)
        0.5
    """
    how = Scorer(selection=selection, max_clusters=max_clusters, restarts=restarts)
    points = _centred(embeddings, center)
    strength = None if activations is None else _one_each(activations, len(points))
    if strength is not None and not bool((strength > baseline).any()):
        raise InputError(
            f"none of the activations, {strength.min():.3g} to {strength.max():.3g}, is above the "
            f"baseline {baseline:g}. Give baseline=, the mean activation of random images, or "
            "leave the activations away."
        )
    return _scored(points, strength, baseline, how, seed)


def _scored(
    points: Tensor, strength: Tensor | None, baseline: float, how: Scorer, seed: int
) -> EmbeddingScore:
    """Score one neuron of centred embeddings [N, D]."""
    given: dict[str, Any] = {
        "valid": torch.ones(1, len(points), dtype=torch.bool, device=points.device),
        "keys": torch.tensor([seed], device=points.device),
        "baseline": points.new_tensor([baseline]),
    }
    weights = None if strength is None else strength[None]
    found = polysemanticity_score(points[None], weights, **given, **how.clustering())
    doubt = score_uncertainty(
        points[None],
        found,
        weights,
        **given,
        k_max=how.max_clusters,
        selection=how.selection,
        repelled=False,
    )
    k = int(found.k[0])
    clusters = EmbeddingClusters(
        labels=found.labels[0].cpu().numpy(),
        k=k,
        shares=found.cluster_weights[0, :k].cpu().numpy(),
        bic=found.bic[0].cpu().numpy(),
        separation=float(found.separation[0]),
        p_value=float(found.p_value[0]),
    )
    interval = float(doubt.low[0]), float(doubt.high[0])
    return EmbeddingScore(float(found.score[0]), interval, float(found.k_eff[0]), clusters)


def _centred(embeddings: Numbers, center: Numbers | float | None) -> Tensor:
    """Embeddings as float64 [N, D], their centre taken away."""
    points = as_tensor(embeddings, "embeddings")
    if points.ndim != 2 or 0 in points.shape:
        raise InputError(
            f"embeddings have to be [images, dimensions], neither of them 0, got "
            f"{list(points.shape)}."
        )
    points = _finite(points.cpu().double(), "embeddings")
    if center is None:
        _warn_of_common_mean(points)
        return points
    away = _finite(as_tensor(center, "center").cpu().double(), "center")
    if away.ndim and away.shape != points.shape[1:]:
        raise InputError(
            f"center has to be [{points.shape[1]}], one number for each dimension of the "
            f"embeddings, or 0, got {list(away.shape)}."
        )
    return points - away


def _warn_of_common_mean(points: Tensor) -> None:
    common = float(points.mean(0).square().sum() / points.square().sum(1).mean())
    if common > _COMMON:
        warnings.warn(
            f"{common:.0%} of what these embeddings hold (their mean square) is common to all of "
            "them, so they look alike whatever they show, and the score is too low. Give center=, "
            "the mean embedding of many unrelated images, or center=0 if it is taken away already.",
            UserWarning,
            stacklevel=4,
        )


def _one_each(activations: Numbers, count: int) -> Tensor:
    """Activations as float64 [N]."""
    strength = _finite(as_tensor(activations, "activations").cpu().double(), "activations")
    if strength.shape != (count,):
        raise InputError(
            f"activations have to be [{count}], one for each image, got {list(strength.shape)}."
        )
    return strength


def _finite(values: Tensor, name: str) -> Tensor:
    if not bool(values.isfinite().all()):
        lost = int((~values.isfinite()).sum())
        raise InputError(
            f"{name} hold {lost} value{'s' if lost != 1 else ''} that are NaN or infinite; leave "
            "those images out."
        )
    return values


def _as_images(images: Numbers | Sequence[Image.Image], side: int) -> Tensor:
    """Images of one size as uint8 or float [N, 3, H, H]."""
    if isinstance(images, Sequence) and all(isinstance(image, Image.Image) for image in images):
        if not images:
            raise InputError("there are no images to embed.")
        images = np.stack([square(image, side) for image in images])
    found = as_tensor(images, "images")  # type: ignore[arg-type]
    if found.ndim == 4 and found.dtype == torch.uint8 and found.shape[-1] == 3:
        found = found.permute(0, 3, 1, 2)
    is_known = found.dtype == torch.uint8 or found.is_floating_point()
    if found.ndim != 4 or found.shape[1] != 3 or not is_known or 0 in found.shape:
        raise InputError(
            "images have to be uint8 [N, H, W, 3], uint8 or float [N, 3, H, W], or a list of PIL "
            f"images, got {found.dtype} {list(found.shape)}."
        )
    if found.shape[2] != found.shape[3]:
        raise InputError(
            f"images have to be square, got {list(found.shape[2:])}; crop them, or give a list of "
            "PIL images, which are cropped to their middle."
        )
    if found.is_floating_point():
        _finite(found, "images")
        if float(found.min()) < 0 or float(found.max()) > 1:
            raise InputError(
                f"images of floating-point numbers have to be in [0, 1], got {float(found.min()):g}"
                f" to {float(found.max()):g}; undo the normalisation, or give uint8."
            )
    return found


def _as_float(images: Tensor) -> Tensor:
    return images / 255.0 if images.dtype == torch.uint8 else images.float()
