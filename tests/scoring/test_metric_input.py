"""What the metrics and the function take: gradients, NumPy, no NaN, activations of any sign."""

import matplotlib
import numpy as np
import pytest
import torch

from polylight.errors import InputError
from polylight.scoring import (
    EffectiveFeatures,
    PaperScore,
    PolysemanticityScore,
    polysemanticity_score,
)

METRICS = [PolysemanticityScore, EffectiveFeatures, PaperScore]
X = torch.eye(6).repeat_interleave(4, dim=0)[:16] + 0.01 * torch.randn(
    16, 6, generator=torch.Generator().manual_seed(2)
)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize(
    "make",
    [lambda x: x.clone().requires_grad_(), lambda x: x.numpy(), lambda x: x.numpy()[::-1][::-1]],
    ids=["gradients", "numpy", "strides"],
)
def test_embeddings_of_any_origin_give_the_same(kind, make):
    plain, other = kind(), kind()
    plain.update(X)
    other.update(make(X))
    value = other.compute()
    assert not value.requires_grad
    assert value == plain.compute()


@pytest.mark.parametrize("kind", METRICS)
def test_nan_is_refused_when_it_comes(kind):
    metric, lost = kind(), X.clone()
    lost[3, 1] = torch.nan
    with pytest.raises(InputError, match=r"embeddings of 1 of 16 images are NaN or infinite"):
        metric.update(lost)
    with pytest.raises(InputError, match=r"activations of 16 of 16 images"):
        metric.update(X, torch.full((16,), torch.inf))
    metric.update(X)
    assert metric.compute().isfinite()


def test_activations_below_zero_need_a_baseline():
    below = torch.linspace(-3, -2, 16)
    metric = PolysemanticityScore()
    metric.update(X, below)
    with pytest.raises(InputError, match=r"none of the 16 activations is above the baseline 0; "):
        metric.compute()
    metric = PolysemanticityScore(baseline=-4.0)
    metric.update(X, below)
    shifted = PolysemanticityScore()
    shifted.update(X, below + 4.0)
    assert metric.compute() == pytest.approx(shifted.compute().item(), abs=1e-6)


def test_the_function_takes_numpy():
    ones, x = np.ones((1, 16)), X[None].double().numpy()
    found = polysemanticity_score(x, ones, valid=ones.astype(bool), keys=np.array([7]))
    expected = polysemanticity_score(X[None].double(), keys=torch.tensor([7]))
    assert found.score.item() == expected.score.item()
    ones[0, :2] = np.nan
    with pytest.raises(InputError, match=r"activations of 2 of 16 images"):
        polysemanticity_score(X[None], ones)
    with pytest.raises(InputError, match="embeddings have to be numbers"):
        polysemanticity_score(np.array([["a"]]))


def test_values_are_plotted():
    matplotlib.use("agg")
    metric = PolysemanticityScore()
    values = [metric(X[:8]), metric(X)]
    figure, axes = metric.plot(values)
    assert axes.get_ylim()[0] <= 0
    assert len(axes.lines[0].get_ydata()) == 2
    matplotlib.pyplot.close(figure)
    figure, _ = metric.plot()
    matplotlib.pyplot.close(figure)
