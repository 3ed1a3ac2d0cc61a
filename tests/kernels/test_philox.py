import pytest
import torch

from polylight.kernels import philox_normal, philox_uniform, stream_key
from polylight.kernels.philox import _philox


# Known answers of Random123's philox4x32-10.
@pytest.mark.parametrize(
    ("key", "counter", "block", "expected"),
    [
        (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_words_are_those_of_the_published_generator(key, counter, block, expected):
    words = _philox(torch.tensor([key]), torch.tensor([counter]), block + 1)
    assert tuple(words[0, block].tolist()) == expected


def _reference_words(key, counter, block):
    """Philox4x32-10 in Python integers, which never wrap by themselves."""
    mask = 2**32 - 1
    c = [counter & mask, (counter >> 32) & mask, block, 0]
    k = [key & mask, (key >> 32) & mask]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & mask, (p0 >> 32) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.parametrize("key", [1, -1, 2**62 + 12345, stream_key(0, "blocks.4:17", 3)])
@pytest.mark.parametrize("counter", [0, 7, 1 << 48])
def test_words_equal_exact_integer_arithmetic(key, counter):
    words = _philox(torch.tensor([key]), torch.tensor([counter]), 3)[0]
    assert words.tolist() == [_reference_words(key, counter, b) for b in range(3)]


def test_a_row_does_not_depend_on_the_others():
    keys = torch.tensor([stream_key(s) for s in range(6)])
    steps = torch.arange(6) * 11
    together = philox_normal(keys, steps, 33)
    for row in range(6):
        alone = philox_normal(keys[row : row + 1], steps[row : row + 1], 33)
        assert torch.equal(alone[0], together[row])


def test_uniform_is_uniform_and_open():
    draws = philox_uniform(torch.arange(8), torch.arange(8), 50_000).double()
    assert draws.min() > 0
    assert draws.max() < 1
    n = draws.numel()
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    counts = torch.histc(draws, 16, 0, 1)
    chi2 = ((counts - n / 16) ** 2 / (n / 16)).sum()
    assert chi2 < 45  # 15 degrees of freedom: p = 1e-4 at 44.3


def test_normal_has_the_moments_of_the_normal():
    draws = philox_normal(torch.arange(8), torch.arange(8), 50_001).double().flatten()
    n = draws.numel()
    assert abs(draws.mean()) < 4 / n**0.5
    assert abs(draws.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((draws**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_stream_keys_are_fixed_and_tell_their_parts_apart():
    assert stream_key(0, "blocks.4:17", "image", 3, 0) == stream_key(
        0, "blocks.4:17", "image", 3, 0
    )
    assert stream_key("a", "bc") != stream_key("ab", "c")
    assert -(2**63) <= stream_key("x") < 2**63
