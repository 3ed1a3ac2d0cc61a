"""Latents to images: the Fourier and the pixel parametrisation, with decorrelated colour."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylight.errors import InputError
from polylight.kernels import Backend, philox_normal
from polylight.networks.images import crop

# How the colours of ImageNet photos vary together: the square root of their covariance (Olah et
# al. 2017, "Feature visualization"), divided by its largest column norm, as every engine has it.
_COLOR_CORRELATION = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
# The stream of a slot numbers its ascent steps from 0; this draw lies beyond any of them.
_INITIAL_DRAW = 1 << 48


@dataclass(frozen=True, kw_only=True)
class Parametrization:
    """What an image is made from.

    Attributes:
        kind: ``fourier`` optimises the spectrum, ``pixel`` the pixels.
        size: Side of the square image in pixels, >= 8.
        sd: Standard deviation of the latents at the start, > 0. From images that hardly differ,
            as Lucid's 0.01 makes them, ascents of a neuron with several features mostly take the
            same one: the one that any grey image shows most of.
        decay: Power of the frequency that the spectrum is divided by; 0 makes high frequencies
            as easy to reach as low ones, 1 balances the energy of natural images.
        channels: Channels of the image, > 0. Only those of RGB vary together.
        window: Height and width of the middle that a network sees, in pixels; all around it is
            grey. None for the whole image.
    """

    kind: Literal["fourier", "pixel"] = "fourier"
    size: int = 128
    sd: float = 0.1
    decay: float = 1.0
    channels: int = 3
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"image_size has to be at least 8 pixels, not {self.size}.")
        if not self.sd > 0:
            raise InputError(f"sd of the first latents has to be > 0, not {self.sd}.")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of one image; the spectrum's last axis is (real, imaginary)."""
        if self.kind == "pixel":
            return (self.channels, self.size, self.size)
        return (self.channels, self.size, self.size // 2 + 1, 2)

    def initial_latents(self, keys: Tensor, backend: Backend = "torch") -> Tensor:
        """Draw the latents that ascents start from.

        Args:
            keys: int64 [B], the random stream of each image.
            backend: Which implementation of the kernels runs.

        Returns:
            float32 [B, *latent_shape], normal with standard deviation ``sd``.
        """
        num = int(torch.Size(self.latent_shape).numel())
        draws = philox_normal(keys, torch.full_like(keys, _INITIAL_DRAW), num, backend=backend)
        return (self.sd * draws).view(-1, *self.latent_shape)

    def spectrum_scale(self, device: torch.device | str = "cpu") -> Tensor:
        """Weight of each frequency: 1 / max(f, 1 / size) ** decay, float32 [size, size/2+1]."""
        rows = torch.fft.fftfreq(self.size, device=device)[:, None]
        columns = torch.fft.rfftfreq(self.size, device=device)[None, :]
        frequency = torch.sqrt(rows**2 + columns**2).clamp_min(1.0 / self.size)
        return frequency**-self.decay


class ImageDecoder(torch.nn.Module):
    """Decodes images from latents.

    Fourier: ``sigmoid(M irfft2(latent / f ** decay) / 4)``, M being the colour correlation; the
    recipe and its constants are those of Lucid (Olah et al. 2017). Pixel: ``sigmoid(M latent)``.
    The sigmoid is taken as ``(1 + tanh(x / 2)) / 2``: torch.sigmoid rounds the last elements of
    a tensor, and of each thread's share of it, unlike the others, so that an image would depend
    on its slot.
    """

    color: Tensor
    inside: Tensor | None
    scale: Tensor
    scale_back: Tensor

    def __init__(self, parametrization: Parametrization) -> None:
        super().__init__()
        self.parametrization = parametrization
        color = _COLOR_CORRELATION / _COLOR_CORRELATION.norm(dim=0).max()
        if parametrization.channels != 3:
            # Each channel moves as much as the luminance of RGB.
            color = color[:, 0].mean() * torch.eye(parametrization.channels)
        # The 1/4, and the 1/2 that tanh asks for, commute with the transform and cost nothing.
        self.register_buffer("color", color / 2, persistent=False)
        # Of real and imaginary part alike: to spread it over them in the product takes longer.
        scale = parametrization.spectrum_scale()[..., None].repeat(1, 1, 2) / 4
        # Columns stand for their mirror images too, but for the first and, of even sizes, the last.
        twice = torch.full((scale.shape[1], 1), 2.0)
        twice[0] = 1.0
        if parametrization.size % 2 == 0:
            twice[-1] = 1.0
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("scale_back", scale * twice, persistent=False)
        self.register_buffer("inside", _inside(parametrization), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode a batch.

        Args:
            latents: float32 [B, *latent_shape].

        Returns:
            float32 [B, channels, size, size] in [0, 1].
        """
        plain: Tensor = latents
        if self.parametrization.kind == "fourier":
            plain = _FromSpectrum.apply(latents, self.scale, self.scale_back)
        # A batched product, so that an image's colours do not depend on the batch.
        mixed = torch.matmul(self.color, plain.flatten(2)).view_as(plain)
        centred = 0.5 * torch.tanh(mixed)
        return 0.5 + (centred if self.inside is None else centred * self.inside)


def _inside(parametrization: Parametrization) -> Tensor | None:
    """1 in the window and 0 around it, float32 [size, size]; None where all is seen."""
    if parametrization.window is None:
        return None
    inside = torch.zeros(parametrization.size, parametrization.size)
    crop(inside, parametrization.window).fill_(1.0)
    return inside


class _FromSpectrum(torch.autograd.Function):
    """The scaled spectrum's inverse transform; its gradient is a transform, scaled."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, scale: Tensor, scale_back: Tensor) -> Tensor:
        ctx.scale_back = scale_back
        spectrum = torch.view_as_complex(latents * scale)
        size = (scale.shape[0], scale.shape[0])
        plain: Tensor = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        return plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        spectrum = torch.fft.rfft2(grad, norm="ortho")
        return torch.view_as_real(spectrum).mul_(ctx.scale_back), None, None
