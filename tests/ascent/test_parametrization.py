import numpy as np
import pytest
import torch

from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.errors import InputError


def test_fourier_images_equal_an_independent_transform():
    made = Parametrization(size=16, decay=1.5)
    latents = made.initial_latents(torch.tensor([3, 4])) * 100
    images = ImageDecoder(made)(latents)

    matrix = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    matrix /= np.linalg.norm(matrix, axis=0).max()
    fy, fx = np.fft.fftfreq(16)[:, None], np.fft.rfftfreq(16)[None]
    scale = 1 / np.maximum(np.sqrt(fy**2 + fx**2), 1 / 16) ** 1.5
    spectrum = latents.double().numpy()
    spectrum = (spectrum[..., 0] + 1j * spectrum[..., 1]) * scale
    plain = np.fft.irfft2(spectrum, s=(16, 16), norm="ortho") / 4
    logits = np.einsum("ij,bjhw->bihw", matrix, plain)
    np.testing.assert_allclose(images.numpy(), 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
def test_gradient_of_fourier_images_is_that_of_finite_differences(size):
    decoder = ImageDecoder(Parametrization(size=size, sd=1.0)).double()
    latents = decoder.parametrization.initial_latents(torch.tensor([3, 4])).double()
    assert torch.autograd.gradcheck(decoder, (latents.requires_grad_(),))


def test_pixel_images_mix_colours_only():
    made = Parametrization(kind="pixel", size=8)
    latents = torch.zeros(1, 3, 8, 8)
    latents[0, 0, 2, 3] = 1.0
    images = ImageDecoder(made)(latents)
    expected = torch.sigmoid(torch.tensor([0.26, 0.27, 0.27]) / 0.46195238)
    torch.testing.assert_close(images[0, :, 2, 3], expected)
    assert (images[0, :, 0, 0] == 0.5).all()


@pytest.mark.parametrize("kind", ["fourier", "pixel"])
def test_an_image_does_not_depend_on_its_batch(kind):
    made = Parametrization(kind=kind, size=32)
    keys = torch.tensor([5, 6, 7, 8])
    images = ImageDecoder(made)(made.initial_latents(keys))
    swapped = ImageDecoder(made)(made.initial_latents(keys.flip(0)))
    assert torch.equal(images, swapped.flip(0))
    assert images.min() > 0
    assert images.max() < 1


def test_initial_latents_have_the_deviation_asked_for():
    latents = Parametrization(size=64, sd=0.02).initial_latents(torch.arange(4))
    assert latents.shape == (4, 3, 64, 33, 2)
    assert latents.std().item() == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("size", [6, 0])
def test_sizes_too_small_for_a_spectrum_are_refused(size):
    with pytest.raises(InputError, match="image_size has to be at least 8"):
        Parametrization(size=size)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_that_are_no_colours_do_not_mix(channels):
    made = Parametrization(kind="pixel", size=8, channels=channels)
    latents = torch.zeros(1, channels, 8, 8)
    latents[0, -1, 2, 3] = 2.0
    images = ImageDecoder(made)(latents)
    # As far as the luminance of RGB moves.
    moved = torch.tensor(2.0 * (0.26 + 0.27 + 0.27) / 3 / 0.46195238).sigmoid()
    torch.testing.assert_close(images[0, -1, 2, 3], moved)
    latents[0, -1, 2, 3] = 0.0
    assert (ImageDecoder(made)(latents) == 0.5).all()
    assert (images[0, :-1] == 0.5).all()


def test_around_the_window_all_is_grey_and_nothing_moves():
    made = Parametrization(size=16, window=(16, 9))
    plain = Parametrization(size=16)
    latents = (made.initial_latents(torch.tensor([3])) * 10).requires_grad_()
    images = ImageDecoder(made)(latents)
    assert torch.equal(images[..., 3:12], ImageDecoder(plain)(latents)[..., 3:12])
    assert (images[..., :3] == 0.5).all()
    assert (images[..., 12:] == 0.5).all()
    (gradient,) = torch.autograd.grad(images[..., :3].sum(), latents)
    assert not gradient.any()
