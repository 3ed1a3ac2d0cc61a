"""Are the latents of a sparse autoencoder less polysemantic than the channels that they read?

Trains a TopK autoencoder (Gao et al. 2024) on a layer of EfficientNet-Lite0, scores some channels
of the layer and some latents in one run, and compares them:

    python docs/examples/sae.py --run_dir runs/sae --photos FOLDER

Without a folder it learns from crops of the two photos that come with scikit-learn: enough to try
it, too few for a claim.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

import polylight
from polylight.networks import Model

logger = logging.getLogger(__name__)

SIDE = 128
"""Side of the crops, in pixels: as large as the images that are made."""


class TopK(nn.Module):
    """An autoencoder that keeps the k largest latents of each input.

    Args:
        channels: Of the inputs.
        latents: How many.
        k: How many of them are kept.
    """

    def __init__(self, channels: int, latents: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(channels, latents)
        self.decoder = nn.Linear(latents, channels, bias=False)
        self.b_dec = nn.Parameter(torch.zeros(channels))
        nn.init.zeros_(self.encoder.bias)
        self.unit_norm()
        self.encoder.weight.data = self.decoder.weight.data.mT.clone()

    def encode(self, x: Tensor) -> Tensor:
        """Latents [N, latents] of inputs [N, channels], most of them 0."""
        z = self.encoder(x - self.b_dec)
        best = z.topk(self.k, dim=1)
        return torch.zeros_like(z).scatter(1, best.indices, best.values.relu())

    def forward(self, x: Tensor) -> Tensor:
        """Inputs put together again from their latents."""
        restored: Tensor = self.decoder(self.encode(x)) + self.b_dec
        return restored

    @torch.no_grad()
    def unit_norm(self) -> None:
        """Keep every vector of the dictionary at length 1."""
        self.decoder.weight.data = F.normalize(self.decoder.weight.data, dim=0)

    def save(self, path: Path, scale: float) -> None:
        """Write the encoder as polylight reads it, for inputs that are not divided by a scale."""
        tensors = {
            "encoder.weight": (self.encoder.weight.data / scale).contiguous(),
            "encoder.bias": self.encoder.bias.data,
            "b_dec": self.b_dec.data * scale,
        }
        save_file(tensors, path, metadata={"k": str(self.k)})


def crops(folder: Path | None, count: int, generator: np.random.Generator) -> Tensor:
    """Random square crops of photos: float32 [count, 3, SIDE, SIDE] in [0, 1]."""
    if folder is None:
        photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    else:
        kinds = (".jpg", ".jpeg", ".png")
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds]
        photos = [Image.open(path).convert("RGB") for path in files]
    found: list[npt.NDArray[np.uint8]] = []
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(min(photo.size) * generator.uniform(0.3, 1))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in photo.size)
        crop = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        found.append(np.asarray(crop))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def activations(model: Model, layer: str, images: Tensor) -> Tensor:
    """What a layer returns at every position of images: float32 [N, channels]."""
    seen: list[Tensor] = []
    module = model.net.get_submodule(layer)
    hook = module.register_forward_hook(lambda _, args, out: seen.append(out))
    for batch in images.split(16):
        model.net(model.preprocess(batch))
    hook.remove()
    return torch.cat([maps.permute(0, 2, 3, 1).flatten(0, 2) for maps in seen])


def train(inputs: Tensor, latents: int, k: int, steps: int) -> tuple[TopK, float, Tensor]:
    """Train an autoencoder on inputs of mean square 1.

    Returns:
        It; the share of the inputs' variance that it explains; and how often each latent is on.
    """
    torch.manual_seed(0)
    net = TopK(inputs.shape[1], latents, k)
    net.b_dec.data = inputs.mean(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = inputs[torch.randint(len(inputs), (1024,))]
        optimizer.zero_grad()
        F.mse_loss(net(batch), batch).backward()
        optimizer.step()
        net.unit_norm()
    with torch.no_grad():
        sample = inputs[torch.randperm(len(inputs))[:8192]]
        lost = (net(sample) - sample).square().sum() / (sample - sample.mean(0)).square().sum()
        return net, 1 - float(lost), (net.encode(sample) > 0).float().mean(0)


def main(
    run_dir: Path,
    photos: Path | None = None,
    layer: str = "blocks.4",
    count: int = 8,
    latents: int = 448,
    k: int = 16,
    steps: int = 3000,
    num_crops: int = 600,
    **settings: Any,
) -> pd.DataFrame:
    """Train, score, compare.

    Args:
        run_dir: Directory of the run; the encoder is written beside it.
        photos: Folder of photos.
        layer: Of EfficientNet-Lite0, one that returns maps.
        count: Channels, and latents, that are scored.
        latents: Of the autoencoder.
        k: Latents that are on at a position.
        steps: Of its training.
        num_crops: Images that it learns from.
        settings: Further settings of ``polylight.score``.

    Returns:
        One row a channel or latent: ``kind``, ``neuron``, ``score``, ``k``.
    """
    model = polylight.load_model("efficientnet_lite0")
    inputs = activations(model, layer, crops(photos, num_crops, np.random.default_rng(0)))
    scale = float(inputs.square().mean().sqrt())
    net, explained, share = train(inputs / scale, latents, k, steps)
    logger.info(
        "%d places, %d latents, %d of them on: %.0f %% of the variance explained; %d latents are "
        "on somewhere",
        *(len(inputs), latents, k, 100 * explained, int((share > 0).sum())),
    )
    file = run_dir.with_suffix(".safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    net.save(file, scale)

    generator = torch.Generator().manual_seed(0)
    used = (share > 1e-3).nonzero().flatten()
    some = used[torch.randperm(len(used), generator=generator)[:count]].tolist()
    channels = torch.randperm(inputs.shape[1], generator=generator)[:count].tolist()
    neurons = [f"{layer}:{c}" for c in channels] + [f'sae({layer},"{file}")[{i}]' for i in some]
    run = polylight.score(model, neurons, run_dir=run_dir, **settings)
    table = run.to_pandas()[["neuron", "score", "k"]]
    kind = np.where(table["neuron"].str.startswith("sae("), "latent", "channel")
    table.insert(0, "kind", kind)
    return table


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/sae"))
    parser.add_argument("--photos", type=Path)
    given = parser.parse_args()
    found = main(given.run_dir, given.photos)
    logger.info("%s", found.to_string(index=False, float_format="%.3f"))
    of_kinds = found.groupby("kind")["score"].describe()[["count", "mean", "50%", "max"]]
    logger.info("%s", of_kinds.round(3))
