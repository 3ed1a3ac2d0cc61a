import copy
from functools import partial

import pytest
import torch

from polylight.kernels import Block, Chain, has_fma, inverted_residuals
from polylight.kernels.inverted_residual import reference
from polylight.kernels.inverted_residual.layout import Plan

pytestmark = pytest.mark.skipif(not has_fma(), reason="the processor has no fused multiply-add")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block(channels, inner, out, kernel=(3, 3), stride=1, padding=None, highs=(6.0, 6.0), **given):
    """A block of random weights whose rectifiers cut off at either side."""
    expands = given.get("expands", True)
    expand = (draw(inner, channels) / channels**0.5 * 4, draw(inner, seed=1) * 2)
    return Block(
        expand=expand if expands else None,
        taps=draw(inner, *kernel, seed=2) / 2,
        bias=draw(inner, seed=3) * 2,
        project=(draw(out, inner, seed=4) / inner**0.5, draw(out, seed=5)),
        highs=highs if expands else (torch.inf, highs[1]),
        stride=stride,
        padding=(kernel[0] // 2, kernel[1] // 2) if padding is None else padding,
        is_residual=given.get("is_residual", False),
    )


def in_double(blocks):
    def double(pair):
        return pair if pair is None else tuple(part.double() for part in pair)

    return [
        b._replace(
            expand=double(b.expand),
            taps=b.taps.double(),
            bias=b.bias.double(),
            project=double(b.project),
        )
        for b in blocks
    ]


def fused(x, chain):
    return inverted_residuals(x, chain, backend="numba")


def both_ways(x, slope, run):
    x = x.clone().requires_grad_()
    out = run(x)
    return out.detach(), torch.autograd.grad(out, x, slope.to(out))[0]


CHAINS = {
    "one": ([block(16, 48, 32)], 12, 12),
    "no vector is full": ([block(5, 19, 3)], 7, 9),
    "residual": ([block(24, 144, 24, is_residual=True)], 8, 8),
    "stride": ([block(16, 96, 24, stride=2)], 16, 16),
    "odd sides at a stride": ([block(16, 32, 16, (5, 5), 2)], 11, 7),
    "stride of three": ([block(8, 16, 8, (5, 5), 3)], 13, 10),
    "no expansion": ([block(20, 20, 12, expands=False)], 6, 5),
    "no expansion, residual": ([block(20, 20, 20, expands=False, is_residual=True)], 6, 5),
    "oblong kernel": ([block(8, 16, 8, (1, 5))], 6, 9),
    "no padding": ([block(8, 40, 8, (3, 3), 1, (0, 0))], 9, 6),
    "more padding than the kernel needs": ([block(8, 16, 8, (3, 3), 2, (2, 3))], 6, 6),
    "one pixel": ([block(40, 240, 48, (5, 5), 2)], 1, 1),
    "plain rectifiers": ([block(16, 32, 16, highs=(torch.inf, torch.inf))], 9, 9),
    "several": (
        [
            block(32, 32, 16, expands=False),
            block(16, 96, 24, (4, 4), 2, (1, 1)),
            block(24, 144, 24, (5, 5), is_residual=True),
            block(24, 70, 20, stride=2),
        ],
        14,
        11,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_kernel_equals_float64_both_ways(name):
    blocks, height, width = CHAINS[name]
    chain = Chain(blocks, height, width)
    x = draw(3, chain.in_shape[0], height, width, seed=6)
    slope = draw(3, *chain.out_shape, seed=7)
    out, back = both_ways(x, slope, partial(fused, chain=chain))
    expected = both_ways(
        x.double(), slope.double(), lambda x: reference.inverted_residuals(x, in_double(blocks))
    )
    assert (out - expected[0]).abs().max() <= 2e-6 * expected[0].abs().max()
    # Of values as near to the kink of a rectifier as they are rounded there are none here.
    assert (back - expected[1]).abs().max() <= 5e-6 * expected[1].abs().max()


def test_gradient_is_that_of_finite_differences():
    blocks = in_double([block(4, 6, 4, is_residual=True), block(4, 6, 3, stride=2)])
    x = draw(1, 4, 5, 5, seed=8).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: reference.inverted_residuals(x, blocks), (x,), eps=1e-7
    )


def test_taps_that_are_zero_cost_nothing_and_change_nothing():
    padded = block(16, 96, 24, (4, 4), 2, (1, 1))
    padded.taps[:, 0] = padded.taps[:, :, 0] = 0.0
    chain = Chain([padded], 8, 8)
    assert chain.plans[0][Plan._fields.index("num_taps")] == 9
    x = draw(2, 16, 8, 8)
    assert torch.allclose(fused(x, chain), inverted_residuals(x, chain), atol=1e-5)
    # Every pixel has to meet one.
    single = block(16, 32, 16, (2, 2), 2, (0, 0))
    single.taps[:, 1] = 0.0
    assert Chain([single], 8, 8).plans[0][Plan._fields.index("num_taps")] == 4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_image_has_the_same_bits_alone_and_in_any_batch(threads):
    blocks, height, width = CHAINS["several"]
    chain = Chain(blocks, height, width)
    x, slope = draw(5, 32, height, width), draw(5, *chain.out_shape, seed=1)
    x[3] = torch.nan  # not even when another is lost

    run = partial(fused, chain=chain)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, back = both_ways(x, slope, run)
    finally:
        torch.set_num_threads(before)
    assert out[3].isnan().all()
    for i in (0, 1, 2, 4):
        alone = both_ways(x[i : i + 1], slope[i : i + 1], run)
        assert torch.equal(out[i : i + 1], alone[0])
        assert torch.equal(back[i : i + 1], alone[1])


def test_any_memory_format_will_do():
    blocks, height, width = CHAINS["one"]
    chain = Chain(blocks, height, width)
    x, slope = draw(2, 16, height, width), draw(2, 32, height, width, seed=1)

    run = partial(fused, chain=chain)
    plain = both_ways(x, slope, run)
    last = both_ways(
        x.contiguous(memory_format=torch.channels_last), torch.ones(1).expand_as(slope) * slope, run
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))


def test_what_is_not_written_to_is_not_read(monkeypatch):
    blocks, height, width = CHAINS["several"]
    chain = Chain(blocks, height, width)
    x, slope = draw(2, 32, height, width), draw(2, *chain.out_shape, seed=1)

    run = partial(fused, chain=chain)
    expected = both_ways(x, slope, run)
    with chain.workspace() as memory:
        for part in memory[:-1]:
            part.fill(float("nan"))
    empty = torch.empty

    def poisoned(*shape, **given):
        made = empty(*shape, **given)
        return made.fill_(float("nan") if made.dtype.is_floating_point else -1)

    monkeypatch.setattr(torch, "empty", poisoned)
    found = both_ways(x, slope, run)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_chain_is_its_own_copy():
    chain = Chain(*CHAINS["one"])
    assert copy.deepcopy(chain) is chain


def test_the_plain_path_is_that_of_the_blocks():
    blocks, height, width = CHAINS["several"]
    x = draw(2, 32, height, width)
    found = inverted_residuals(x, Chain(blocks, height, width))
    assert torch.equal(found, reference.inverted_residuals(x, blocks))
