import numpy as np
import pytest
import torch

from polylight.kernels import centred_gram

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "dims"), [(1, 1), (2, 9), (7, 3), (33, 16), (64, 100)])
def test_centred_gram_against_numpy(images, dims, dtype):
    generator = torch.Generator().manual_seed(images)
    points = (5.0 + torch.randn(6, images, dims, generator=generator)).to(dtype)
    valid = torch.rand(6, images, generator=generator) < 0.8
    valid[1], valid[2] = False, True
    points[3] = points[3, :1]
    points[~valid] = NAN
    for backend in ("torch", "numba"):
        gram, order = centred_gram(points, valid, backend=backend)
        for neuron in range(6):
            count = int(valid[neuron].sum())
            chosen = order[neuron, :count]
            assert sorted(order[neuron].tolist()) == list(range(images))
            assert valid[neuron, chosen].all()
            rows = points[neuron, chosen].double().numpy()
            rows = rows - rows.mean(0) if count else rows
            expected = np.zeros((images, images))
            expected[:count, :count] = rows @ rows.T if neuron != 3 else 0.0
            np.testing.assert_allclose(gram[neuron].numpy(), expected, rtol=1e-12, atol=1e-11)
            norms = gram[neuron].diagonal()[:count]
            assert (norms.diff() <= 1e-12 * norms.sum()).all()


def test_centred_gram_in_numba_is_that_of_the_reference_to_rounding():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 31, 50, generator=generator)
    valid = torch.rand(40, 31, generator=generator) < 0.8
    gram, order = centred_gram(points, valid, backend="numba")
    expected, expected_order = centred_gram(points, valid)
    assert torch.equal(order, expected_order)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-12)
    torch.set_num_threads(1)
    assert torch.equal(centred_gram(points, valid, backend="numba")[0], gram)
