import pytest
import torch
from torch import nn

from polylight.networks.transposed import FrozenConv2d, is_slow_backward, with_fast_backward


def convolution(channels, out, kernel, stride, padding, groups=1, dtype=torch.float64):
    torch.manual_seed(kernel * stride + out)
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, dtype=dtype)
    return conv.requires_grad_(False).to(memory_format=torch.channels_last)


def gradients(one, other, x):
    """Outputs, and gradients to the input, of two modules."""
    outputs = [module(x) for module in (one, other)]
    seed = torch.randn_like(outputs[0])
    return outputs, [torch.autograd.grad(out, x, seed)[0] for out in outputs]


CASES = [
    # First layers: of EfficientNet (with a row of zeros), ResNet, ConvNeXt, AlexNet, and odd ones.
    (3, 32, 4, 2, 1, 1),
    (3, 64, 7, 2, 3, 1),
    (3, 24, 4, 4, 0, 1),
    (3, 16, 11, 4, 2, 1),
    (1, 8, 3, 2, 0, 1),
    (4, 8, 5, 3, 4, 1),
    (3, 8, 2, 5, 0, 1),
    (3, 8, 1, 2, 0, 1),
    # Depthwise.
    (6, 6, 5, 1, 2, 6),
    (6, 6, 3, 1, 0, 6),
    (6, 6, 4, 1, 3, 6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
def test_the_gradient_is_that_of_the_convolution(case, size):
    conv = convolution(*case)
    assert is_slow_backward(conv)
    x = torch.randn(2, case[0], *size, dtype=torch.float64, requires_grad=True)
    outputs, found = gradients(FrozenConv2d(conv), conv, x)
    assert torch.equal(*outputs)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_laid_out_like_the_input():
    conv = convolution(3, 32, 4, 2, 1, dtype=torch.float32)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    _, found = gradients(FrozenConv2d(conv), conv, x)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", [(3, 32, 4, 2, 1, 1), (48, 48, 5, 1, 2, 48)])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_does_not_depend_on_its_batch(case, threads):
    torch.set_num_threads(threads)
    conv = FrozenConv2d(convolution(*case, dtype=torch.float32))
    x = torch.randn(8, case[0], 20, 20).contiguous(memory_format=torch.channels_last)
    seed = torch.randn_like(conv(x))

    def gradient(order):
        moved = x[order].contiguous(memory_format=torch.channels_last).requires_grad_()
        kept = seed[order].contiguous(memory_format=torch.channels_last)
        return torch.autograd.grad(conv(moved), moved, kept)[0]

    together = gradient(list(range(8)))
    assert torch.equal(gradient([3] * 8), together[[3] * 8])
    assert torch.equal(gradient([7, 6, 5, 4, 3, 2, 1, 0]), together.flip(0))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3),  # many channels: fast as it is
        nn.Conv2d(3, 8, 3),  # no stride
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        nn.Conv2d(3, 8, (3, 5), stride=2),
        nn.Conv2d(3, 8, 3, stride=(1, 2)),
        nn.Conv2d(3, 8, 3, stride=2, dilation=2),
        nn.Conv2d(3, 8, 3, padding=(0, 1), stride=2),
        nn.Conv2d(3, 8, 1, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8),
        nn.ConvTranspose2d(3, 8, 3, stride=2),
        nn.ReLU(),
    ],
    ids=str,
)
def test_others_stay_as_they_are(conv):
    assert not is_slow_backward(conv)
    net = nn.Sequential(conv)
    with_fast_backward(net)
    assert net[0] is conv


def test_replaced_ones_keep_their_names_and_parameters():
    net = nn.Sequential(convolution(3, 8, 3, 2, 1, dtype=torch.float32), nn.ReLU())
    before = dict(net.named_parameters())
    with_fast_backward(net)
    assert isinstance(net[0], FrozenConv2d)
    assert isinstance(net[0], nn.Conv2d)
    assert all(value is before[name] for name, value in net.named_parameters())
    assert net.to(torch.bfloat16)[0].backward_weight.dtype == torch.bfloat16
    assert "3, 8, kernel_size=(3, 3), stride=(2, 2)" in repr(net[0])
