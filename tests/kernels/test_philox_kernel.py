import pytest
import torch

from polylight.kernels import philox_normal, philox_uniform, stream_key
from polylight.kernels.philox import reference

pytestmark = pytest.mark.usefixtures("poison")
pytest.importorskip("triton")


def streams(count, device):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    return keys.to(device), torch.randint(0, 2**50, (count,), generator=generator).to(device)


@pytest.mark.parametrize("draw", [philox_uniform, philox_normal])
@pytest.mark.parametrize(
    ("count", "num"), [(1, 1), (1, 2), (5, 3), (7, 6), (2, 63), (3, 500), (2, 1024), (2, 2501)]
)
def test_both_backends_draw_the_same_bits(draw, count, num, device):
    keys, counters = streams(count, device)
    found = draw(keys, counters, num, backend="triton")
    assert torch.equal(found, draw(keys, counters, num))
    assert found.shape == (count, num)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("key", [0, 1, -1, -(2**63), 2**63 - 1, stream_key(0, "blocks.4:17", 3)])
@pytest.mark.parametrize("counter", [0, 1 << 31, 1 << 32, 1 << 48])
def test_words_at_the_ends_of_the_integers(key, counter, device):
    keys = torch.tensor([key], device=device)
    counters = torch.tensor([counter], device=device)
    found = philox_uniform(keys, counters, 12, backend="triton")
    assert torch.equal(found.cpu(), reference.philox_uniform(keys, counters, 12))


def test_streams_need_not_be_contiguous(device):
    keys, counters = streams(10, device)
    found = philox_uniform(keys[::3], counters[1:2].expand(4), 9, backend="triton")
    assert torch.equal(found, philox_uniform(keys[::3], counters[1:2].expand(4), 9))


def test_no_streams_draw_nothing(device):
    keys, counters = streams(0, device)
    assert philox_uniform(keys, counters, 6, backend="triton").shape == (0, 6)
