"""Files for TensorBoard's embedding projector: points, what is known of them, and their images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
from torch import Tensor

from polylight.callbacks.tensorboard.grid import Picture, thumbnail
from polylight.run.atomic import write_atomically
from polylight.run.schema import NeuronRow

COLUMNS = ("neuron", "layer", "cluster", "score", "activation")
_FOLDER, _NAME = "projector", "images"
# Browsers refuse a larger picture as a texture.
_SPRITE_SIDE = 8192
_LARGEST_TILE = 64


class Projector:
    """Keeps the images of the first neurons, and writes them as one set of files.

    Images only ever get added behind those that are there. A server reads the points once and
    the rest at every look, so what it has stays in step with what has been written since.

    Args:
        folder: Where the event files are.
        frame: Turns embeddings float32 [N, D] into unit vectors, as the embedder compares them.
        most: Images at the most, >= 0.
    """

    def __init__(self, folder: str | Path, frame: Callable[[Tensor], Tensor], most: int) -> None:
        self.folder, self.frame, self.most = Path(folder), frame, most
        self._points: list[str] = []
        self._facts: list[str] = []
        self._tiles: list[Picture] = []
        self._written = 0

    @property
    def room(self) -> int:
        """Images that can still be added."""
        return self.most - len(self._points)

    def add(self, row: NeuronRow, pictures: Sequence[Picture]) -> None:
        """Add the images of a neuron that are in a cluster, as far as there is room.

        Args:
            row: The neuron.
            pictures: Its images, uint8 [H, W, 3] each.
        """
        shown = clustered(row)[: self.room]
        units = self.frame(torch.from_numpy(row.embedding[shown]))
        pattern = "\t".join(["%.6g"] * units.shape[-1])
        self._points += [pattern % tuple(unit) for unit in units.tolist()]
        for i in shown.tolist():
            values = (row.neuron, row.layer, row.label[i], f"{row.score:.6g}")
            self._facts.append("\t".join(map(str, (*values, f"{row.activation[i]:.6g}"))))
            self._tiles.append(thumbnail(pictures[i], self._side(pictures[i])))

    def write(self) -> None:
        """Write the files, each whole, over those of before; nothing where no image is new.

        Raises:
            OSError: If the disk is full.
        """
        if len(self._points) == self._written:
            return
        (self.folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        self._replace(f"{_FOLDER}/tensors.tsv", self._points)
        self._replace(f"{_FOLDER}/metadata.tsv", ["\t".join(COLUMNS), *self._facts])
        sprite = Image.fromarray(_sprite(self._tiles))
        write_atomically(
            self.folder / _FOLDER / "sprite.png",
            lambda file: sprite.save(file, format="PNG", compress_level=1),
        )
        # Last, since without it nobody asks for the others.
        self._replace("projector_config.pbtxt", [text_format.MessageToString(self._config())])
        self._written = len(self._points)

    def _replace(self, name: str, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        write_atomically(self.folder / name, lambda file: file.write(text.encode()))

    def _config(self) -> ProjectorConfig:
        embedding = EmbeddingInfo(
            tensor_name=_NAME,
            tensor_path=f"{_FOLDER}/tensors.tsv",
            metadata_path=f"{_FOLDER}/metadata.tsv",
        )
        embedding.sprite.image_path = f"{_FOLDER}/sprite.png"
        embedding.sprite.single_image_dim.extend([len(self._tiles[0])] * 2)
        return ProjectorConfig(embeddings=[embedding])

    def _side(self, picture: Picture) -> int:
        """Side of an image in the sprite, pixels, such that all that may come find room."""
        if self._tiles:
            return len(self._tiles[0])
        return min(
            len(picture), len(picture[0]), _LARGEST_TILE, _SPRITE_SIDE // _columns(self.most)
        )


def clustered(row: NeuronRow) -> npt.NDArray[np.intp]:
    """Indices of the images that are in a cluster; of a neuron without a score, none."""
    return np.flatnonzero((row.label >= 0) & (row.score is not None))


def _columns(count: int) -> int:
    """Images in a row of the square that holds that many, > 0."""
    return math.isqrt(count - 1) + 1


def _sprite(tiles: list[Picture]) -> Picture:
    """Arrange images [S, S, 3] by rows in a square, as the projector expects them."""
    side, columns = len(tiles[0]), _columns(len(tiles))
    sprite = np.full((columns * side, columns * side, 3), 255, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * side, (place % columns) * side
        sprite[top : top + side, left : left + side] = tile
    return sprite
