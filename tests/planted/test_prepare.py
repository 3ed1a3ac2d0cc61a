import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from PIL import Image

from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.networks import load_model
from polylight.planted.prepare import (
    _one_minus_ms,
    pooled_activations,
    read_photos,
    screen_channels,
)
from polylight.planted.summary import compare_with_photos
from polylight.scoring import weighted_ms_score


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_photos_are_read_as_numbers_from_0_to_1(tmp_path, rng):
    photos = [rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(3)]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no photo")
    found = read_photos(str(tmp_path), 4)
    exact = torch.from_numpy(np.stack(photos).astype(np.float32) / 255).permute(0, 3, 1, 2)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, exact)
    with pytest.raises(InputError, match=r"--images .*nowhere is no folder"):
        read_photos(tmp_path / "nowhere", 4)


def test_activations_of_photos_are_the_means_of_each_layers_own_output():
    model = load_model("tiny:subject")
    photos = torch.rand(19, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = ["act3", "conv2", "fc"]
    found = pooled_activations(model, layers, photos)
    assert list(found) == layers
    values = model.preprocess(photos.double())
    for name, module in load_model("tiny:subject").net.double().named_children():
        values = module(values)
        if name in layers:
            expected = values.mean((2, 3)) if values.ndim > 2 else values
            scale = expected.abs().max().item()
            torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-5 * scale)


def driven(channel, activation, label, **changes):
    changes |= {"activation": np.float32(activation), "label": np.int32(label)}
    return make_row(f"a:{channel}", n=len(label), layer="a", channel=channel, **changes)


def test_percentile_is_the_share_of_photos_below_the_median_of_a_channels_images():
    pooled = {
        "a": torch.tensor([[0.0, 1.0, 2.0, 9.0], [10.0, 10.0, 10.0, 0.0], [5.0, 5.0, 5.0, 7.0]]).mT,
        "b": torch.full((4, 3), 100.0),
    }
    rows = [
        # Of the valid 1, 2, 2.5 and 30: the median is 2.25, the mean 8.875.
        driven(0, [30.0, 1.0, 99.0, 2.5, 2.0], [0, 0, -1, 1, 0]),
        # As strong as the best photos is not stronger.
        driven(1, [10.0, 10.0, 10.0], [0, 0, 0]),
        driven(2, [8.0, 7.5, 3.0], [0, 1, 0]),
        driven(2, [0.0], [0], status="failed"),
        make_dead("a:0"),
        make_row("max(a:0,a:1)", channel=None),
    ]
    found = compare_with_photos(rows, pooled)
    assert found["photos"] == 4
    assert found["percentile"] == {"a:0": 3 / 4, "a:1": 1 / 4, "a:2": 1.0}
    assert found["above_best"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rows", [[], [make_dead()], [make_row("max(a:0,a:1)", channel=None)]])
def test_a_comparison_of_nothing_is_refused(rows):
    with pytest.raises(InputError, match="no single channel has a score"):
        compare_with_photos(rows, {"a": torch.rand(4, 3)})


def test_all_channels_at_once_have_the_weighted_score_of_each():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    activations = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    # Sparse, of another scale and sign, and one that never moves.
    activations[:, 1] = activations[:, 1].relu()
    activations[:, 2] = 1e4 * activations[:, 2] - 1e5
    activations[:, 3] = 0.3
    # One that follows a direction, so that not all are near 1.
    activations[:, 4] = embeddings[:, 0].relu()
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    expected = torch.cat(
        [
            weighted_ms_score(unit[None], a[None], torch.ones(1, 40, dtype=torch.bool))
            for a in activations.unbind(1)
        ]
    )
    assert expected.isnan().tolist() == [c == 3 for c in range(9)]
    assert expected[4] < 0.9
    found = _one_minus_ms(unit, activations)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, equal_nan=True)


def coloured(count):
    """Photos that are red and blue in turn."""
    photos = 0.2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    photos[0::2, 0] += 0.8
    photos[1::2, 2] += 0.8
    return photos


def test_channels_of_one_kind_of_photo_are_in_the_lower_half_of_their_layer():
    # More photos than one batch holds.
    count = 36
    red = (torch.arange(count) % 2 == 0).float()
    other = (torch.arange(count) // 2 % 2).float()
    pooled = {
        "a": torch.stack([other, red, 1 - other, 3 - 2 * red], 1),
        # Of an odd number the middle one is in, and one that never moves is not.
        "b": torch.stack([0.5 * red + other, torch.full((count,), 2.0), red, other], 1),
    }
    found = screen_channels(load_model("tiny:embedder"), coloured(count), pooled)
    assert [found[f"a:{c}"] for c in range(4)] == [False, True, False, True]
    assert [found[f"b:{c}"] for c in range(4)] == [True, False, True, False]
    assert len(found) == 8


def test_channels_are_screened_by_embeddings_without_what_all_photos_share():
    generator = torch.Generator().manual_seed(1)
    embedder, activations = load_model("tiny:embedder"), torch.rand(20, 10, generator=generator)
    photos = torch.rand(20, 3, 4, 4, generator=generator).repeat_interleave(8, 2)
    photos = photos.repeat_interleave(8, 3)
    embedded = Embedder(embedder)(photos).double()

    def lower_half(vectors):
        valid = torch.ones(10, 20, dtype=torch.bool)
        scores = weighted_ms_score(vectors[None].expand(10, -1, -1), activations.mT, valid)
        return (scores <= scores.sort().values[4]).tolist()

    expected = lower_half(embedded - embedded.mean(0))
    assert expected != lower_half(embedded)
    found = screen_channels(embedder, photos, {"a": activations})
    assert found == {f"a:{c}": is_in for c, is_in in enumerate(expected)}


def test_too_few_photos_screen_nothing(caplog):
    model = load_model("tiny:embedder")
    assert screen_channels(model, coloured(2), {"a": torch.rand(2, 3)}) == {}
    assert caplog.messages == ["2 photos are too few to screen channels by"]
    assert len(screen_channels(model, coloured(3), {"a": torch.rand(3, 3)})) == 3


def test_a_photo_alone_makes_no_pair():
    unit = torch.randn(6, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    unit = unit / unit.norm(dim=1, keepdim=True)
    assert _one_minus_ms(unit, 2 * torch.eye(6, dtype=torch.float64)).isnan().all()
