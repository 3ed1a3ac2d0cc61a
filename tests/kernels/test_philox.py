import pytest
import torch

from polylight.kernels import philox_normal, philox_uniform, stream_key
from polylight.kernels.philox import reference


# Known answers of Random123 (kat_vectors) for philox4x32-10: counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_are_those_of_the_published_generator(counter, key, expected):
    words = reference.philox4x32(counter, key)
    assert " ".join(f"{word:08x}" for word in words) == expected


@pytest.mark.parametrize("key", [0, 1, -1, 2**62 + 12345, stream_key(0, "blocks.4:17", 3)])
@pytest.mark.parametrize("counter", [0, 7, 1 << 48])
def test_torch_draws_the_numbers_of_the_loop(key, counter):
    given = torch.tensor([key]), torch.tensor([counter]), 11
    assert torch.equal(philox_uniform(*given), reference.philox_uniform(*given))
    # Which has the transform in float64.
    expected = reference.philox_normal(*given)
    torch.testing.assert_close(philox_normal(*given), expected, rtol=2e-6, atol=2e-6)


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
