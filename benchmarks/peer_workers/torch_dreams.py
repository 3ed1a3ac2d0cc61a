"""torch-dreams: ``Dreamer.render`` with a batched image and a batched objective.

Its own random resize gives the network another size at each step, so the moves are one affine
map of torchvision, through ``set_custom_transforms``, drawn once for the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_dreams import Dreamer
from torch_dreams.batched_image_param import BatchedAutoImageParam
from torch_dreams.batched_objective import BatchedObjective
from torch_dreams.constants import Constants
from torchvision import transforms

from benchmarks.peer_workers.session import JITTER, LAYER, ROTATE, SIZE, ZOOM, serve_peer
from polylight.networks import Model


class _Preprocess(nn.Module):
    """From the preprocessing that the images come with to the network's own."""

    def __init__(self, model: Model, device: torch.device) -> None:
        super().__init__()
        self._model = model
        self._mean = Constants.imagenet_mean.to(device)[:, None, None]
        self._std = Constants.imagenet_std.to(device)[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        return self._model.preprocess(images * self._std + self._mean)


def render_equal(model: Model, channels: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Transforms and size as polylight has them."""

    def objective(channel: int) -> object:
        return lambda outputs: -outputs[0][:, channel].mean()

    dreamer = Dreamer(model.net, quiet=True, device=str(device))
    shift = JITTER / SIZE
    moves = transforms.RandomAffine(ROTATE, (shift, shift), (1 - ZOOM, 1 + ZOOM))
    dreamer.set_custom_transforms(transforms.Compose([moves, _Preprocess(model, device)]))
    images = dreamer.render(
        layers=[model.net.get_submodule(LAYER)],
        image_parameter=BatchedAutoImageParam(len(channels), SIZE, SIZE, device=str(device)),
        iters=steps,
        custom_func=BatchedObjective([objective(c) for c in channels]),
    )
    return torch.stack([images[i].to_chw_tensor(str(device)) for i in range(len(images))])


if __name__ == "__main__":
    serve_peer(equal=render_equal)
