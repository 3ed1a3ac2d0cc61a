"""Are the latents of a sparse autoencoder less polysemantic than the neurons that they read?

Trains a TopK autoencoder on the activations of one layer of EfficientNet-Lite0, scores some of
its latents and as many neurons of the layer, and writes a page that compares the two runs:

    python docs/examples/sae.py --photos DIR --out sae

Without ``--photos``, it is trained on crops of the two photos that come with scikit-learn: enough
to try it, too little to learn from.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

import polylight
from polylight.cli import main as polylight_command

SIZE = 224
logger = logging.getLogger("sae")


class TopK(nn.Module):
    """A sparse autoencoder of which k latents are on at a time (Gao et al. 2024).

    Args:
        channels: Of the layer.
        latents: How many.
        k: Latents that are on.
    """

    def __init__(self, channels: int, latents: int, k: int) -> None:
        super().__init__()
        directions = F.normalize(torch.randn(latents, channels), dim=1)
        self.k = k
        self.W_enc = nn.Parameter(directions.T.clone())
        self.W_dec = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.b_dec = nn.Parameter(torch.zeros(channels))

    def encode(self, x: Tensor) -> Tensor:
        """Latents [N, latents] of activations [N, channels]."""
        best = torch.topk(((x - self.b_dec) @ self.W_enc + self.b_enc).relu(), self.k)
        return torch.zeros(len(x), self.W_enc.shape[1]).scatter(1, best.indices, best.values)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations [N, channels]."""
        return self.encode(x) @ self.W_dec + self.b_dec


def load_photos(folder: Path | None, count: int) -> Tensor:
    """Squares [N, 3, SIZE, SIZE] in [0, 1] of photos of a folder, or of scikit-learn's two."""
    rng = np.random.default_rng(0)
    if folder is not None:
        paths = [
            p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png")
        ]
        sources = [Image.open(path).convert("RGB") for path in paths[:count]]
        least = 1.0
    else:
        found = load_sample_images().images
        sources = [Image.fromarray(found[i % len(found)]) for i in range(count)]
        least = 0.2
    squares = []
    for image in sources:
        side = int(min(image.size) * rng.uniform(least, 1.0)) if least < 1 else min(image.size)
        left, top = (int(rng.uniform(0, length - side + 1)) for length in image.size)
        square = image.resize((SIZE, SIZE), box=(left, top, left + side, top + side))
        squares.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255)
    return torch.stack(squares)


@torch.no_grad()
def activations(layer: str, photos: Tensor) -> Tensor:
    """What a layer returns at every position of some photos: [N, channels]."""
    model = polylight.load_model("efficientnet_lite0")
    rows: list[Tensor] = []
    hook = model.net.get_submodule(layer).register_forward_hook(
        lambda module, given, out: rows.append(out.movedim(1, -1).flatten(0, -2))
    )
    for batch in photos.split(16):
        model.net(model.preprocess(batch))
    hook.remove()
    return torch.cat(rows)


def train(x: Tensor, latents: int, k: int, steps: int) -> tuple[TopK, float]:
    """Fit an autoencoder to activations [N, channels]: it, and the share of variance explained."""
    torch.manual_seed(0)
    net = TopK(x.shape[1], latents, k)
    mean, scale = x.mean(0), x.std()
    net.b_dec.data.copy_(mean / scale)
    x = x / scale
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (1024,))]
        adam.zero_grad()
        F.mse_loss(net(batch), batch).backward()
        adam.step()
        net.W_dec.data = F.normalize(net.W_dec.data, dim=1)
    with torch.no_grad():
        left = float((net(x) - x).square().sum() / (x - x.mean(0)).square().sum())
        # Of activations as the network has them.
        net.W_enc /= scale
        net.b_dec *= scale
        net.W_dec *= scale
    return net, 1 - left


def compare(
    layer: str = "blocks.4",
    photos: Path | None = None,
    out: Path = Path("sae"),
    *,
    count: int = 8,
    num_photos: int = 200,
    expansion: int = 4,
    k: int = 16,
    steps: int = 2000,
    **settings: Any,
) -> dict[str, Any]:
    """Train an autoencoder, score latents and neurons, and compare them.

    Args:
        layer: Of EfficientNet-Lite0, with maps.
        photos: Folder of photos that it is trained on.
        out: Folder of the encoder, both runs and the page.
        count: Latents and neurons that are scored.
        num_photos: How many photos, or crops, at most.
        expansion: Latents for each channel.
        k: Latents that are on at a position.
        steps: Of the training.
        settings: What else ``polylight.score`` is given.

    Returns:
        By ``neurons`` and ``latents``, the rows of the run (a DataFrame).
    """
    began = time.perf_counter()
    x = activations(layer, load_photos(photos, num_photos))
    net, explained = train(x, x.shape[1] * expansion, k, steps)
    with torch.no_grad():
        active = torch.cat([net.encode(part) > 0 for part in x.split(4096)]).float().mean(0)
    alive = (active > 1e-3).nonzero()[:, 0]
    logger.info(
        "%d latents of %d channels, %.0f %% of the variance explained, %d latents on at more than "
        "0.1 %% of %d positions, trained in %.0f s",
        len(active), x.shape[1], 100 * explained, len(alive), len(x), time.perf_counter() - began,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    encoder = out / "encoder.safetensors"
    state = {name: p.detach().contiguous() for name, p in net.named_parameters()}
    save_file(state, encoder, {"activation": "topk", "k": str(k)})
    latents = sorted(alive[torch.randperm(len(alive))[:count]].tolist())
    channels = sorted(torch.randperm(x.shape[1])[:count].tolist())
    asked = {
        "neurons": [f"{layer}:{channel}" for channel in channels],
        "latents": [f'sae({layer},"{encoder}")[{",".join(map(str, latents))}]'],
    }
    tables = {}
    for name, neurons in asked.items():
        run = polylight.score("efficientnet_lite0", neurons, run_dir=out / name, **settings)
        tables[name] = table = run.to_pandas()
        means = table[["score", "score_low", "score_high", "k_eff"]].mean()
        logger.info(
            "%s: mean score %.3f (mean interval %.3f to %.3f), %.2f effective features, %d of %d "
            "scored",
            name, *means, table["score"].notna().sum(), len(table),
        )  # fmt: skip
    polylight_command(["report", *(str(out / name) for name in asked)])
    return tables


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", default="blocks.4")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sae"))
    parser.add_argument("--count", type=int, default=8)
    given = parser.parse_args()
    compare(given.layer, given.photos, given.out, count=given.count)
