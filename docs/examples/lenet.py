"""Train LeNet-5 (LeCun et al. 1998), the network of Alic et al. (2025), for ``configs/paper.yaml``.

``python docs/examples/lenet.py --help`` lists the options. The network is then ``lenet:lenet5``,
with this folder on PYTHONPATH, and its weights are the file that was written.
"""

import logging
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SIDE = 32
_MEAN, _STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_HELD_OUT = 297

logger = logging.getLogger(__name__)


class LeNet5(nn.Module):
    """LeNet-5 for RGB images of 32 pixels, with rectifiers and max pooling."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1, self.relu3 = nn.Linear(16 * 5 * 5, 120), nn.ReLU()
        self.fc2, self.relu4 = nn.Linear(120, 84), nn.ReLU()
        self.fc3 = nn.Linear(84, num_classes)
        # From here polylight knows how images are prepared, and how large they are.
        self.pretrained_cfg = {"mean": _MEAN, "std": _STD, "input_size": (3, SIDE, SIDE)}

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu4(self.fc2(self.relu3(self.fc1(self.flatten(x)))))
        logits: Tensor = self.fc3(x)
        return logits


def lenet5() -> nn.Module:
    """LeNet-5 without trained weights: the factory that polylight calls."""
    return LeNet5()


def cifar10(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """CIFAR-10 by torchvision, downloaded once: images float32 [N, 3, 32, 32] in [0, 1]."""
    from torchvision.datasets import CIFAR10

    def part(train: bool) -> TensorDataset:
        data = CIFAR10(str(folder), train=train, download=True)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2) / 255
        return TensorDataset(images, torch.tensor(data.targets))

    return part(True), part(False)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1,797 digits of 8 pixels, enlarged, grey in all three channels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    everything = TensorDataset(large.contiguous(), torch.tensor(labels))
    train = TensorDataset(*everything[:-_HELD_OUT])
    return train, TensorDataset(*everything[-_HELD_OUT:])


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as the network expects them, in [-1, 1]."""
    return (images - 0.5) / 0.5


@torch.no_grad()
def accuracy(net: nn.Module, data: TensorDataset) -> float:
    """Share of images that a network classifies correctly."""
    right = sum(
        int((net(normalise(images)).argmax(1) == labels).sum())
        for images, labels in DataLoader(data, batch_size=256)
    )
    return right / len(data)


def train(
    data: Literal["cifar10", "digits"] = "cifar10",
    out: str = "lenet.safetensors",
    photos: str | None = None,
    num_photos: int = 1000,
    epochs: int = 10,
    optimizer: Literal["sgd", "adam"] = "adam",
    learning_rate: float = 0.001,
    weight_decay: float = 0.0,
    folder: str = "data",
    seed: int = 0,
) -> float:
    """Train LeNet-5 and write its weights.

    Args:
        data: ``cifar10``, which is downloaded; where it cannot be had, or if asked for, ``digits``.
        out: The safetensors file to write.
        photos: Folder for images that the network was not trained on, for ``--data.photos``.
        num_photos: How many of them.
        epochs: Passes over the data.
        optimizer: ``sgd``, with a momentum of .9, or ``adam``.
        learning_rate: Its step.
        weight_decay: Its weight decay.
        folder: Where CIFAR-10 is kept.
        seed: Of the first weights and of the order of images.

    Returns:
        Accuracy on images that the network was not trained on.
    """
    torch.manual_seed(seed)
    try:
        trained, held_out = digits() if data == "digits" else cifar10(Path(folder))
    # Without the internet, or with a file that was cut off.
    except (OSError, RuntimeError) as error:
        logger.warning("CIFAR-10 cannot be had (%s): scikit-learn's digits instead", error)
        trained, held_out = digits()
    net = LeNet5()
    steps: torch.optim.Optimizer
    if optimizer == "adam":
        steps = torch.optim.Adam(net.parameters(), learning_rate, weight_decay=weight_decay)
    else:
        steps = torch.optim.SGD(net.parameters(), learning_rate, 0.9, weight_decay=weight_decay)
    for _ in range(epochs):
        for images, labels in DataLoader(trained, batch_size=64, shuffle=True):
            steps.zero_grad()
            F.cross_entropy(net(normalise(images)), labels).backward()
            steps.step()
    save_file(net.state_dict(), out)
    if photos is not None:
        Path(photos).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(held_out.tensors[0][:num_photos]):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(Path(photos) / f"{i:05d}.png")
    found = accuracy(net, held_out)
    logger.info("%s: %.1f %% of %d other images are right", out, 100 * found, len(held_out))
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    auto_cli(train)
