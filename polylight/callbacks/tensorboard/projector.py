"""Files for TensorBoard's embedding projector: points, what is known of them, and their images.

``SummaryWriter.add_embedding`` writes a folder and an entry of the list of embeddings at every call
and warns on standard output of one that is there; a server that reads meanwhile finds half a file.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
from torch import Tensor

from polylight.callbacks.tensorboard.grid import Picture, thumbnail
from polylight.run.atomic import write_atomically
from polylight.run.reported import ReportedScore
from polylight.run.schema import NeuronRow

COLUMNS = ("neuron", "layer", "cluster", "score", "activation")
# Browsers refuse a larger picture as a texture.
_SPRITE_SIDE = 8192
_LARGEST_TILE = 64


class Projector:
    """Keeps the images of the first neurons, and writes them as one set of files.

    Images only ever get added behind those that are there. A server reads the points once and
    the rest at every look, so what it has stays in step with what has been written since.

    Args:
        folder: Where the event files are.
        most: Images at the most, >= 0.
        score: The one that stands beside each image.
    """

    def __init__(self, folder: Path, most: int, score: ReportedScore = "score") -> None:
        self._folder, self._most, self._score = folder, most, score
        self._side = min(_LARGEST_TILE, _SPRITE_SIDE // _columns(most)) if most else 0
        self._points: list[Tensor] = []
        self._facts = ["\t".join(score if name == "score" else name for name in COLUMNS)]
        self._tiles: list[Picture] = []
        self._written = 0

    @property
    def room(self) -> int:
        """Images that can still be added."""
        return self._most - len(self._tiles)

    def add(
        self, row: NeuronRow, images: Sequence[Picture], centre: Callable[[Tensor], Tensor]
    ) -> None:
        """Add the images of a scored neuron that are in a cluster, as far as there is room.

        Args:
            row: The neuron.
            images: Its images, uint8 [H, W, 3] each.
            centre: Turns embeddings float32 [N, D] into the unit vectors that are compared.
        """
        score = getattr(row, self._score)
        if score is None:
            return
        shown = np.flatnonzero(row.label >= 0)[: self.room]
        self._points.append(centre(torch.from_numpy(row.embedding[shown])))
        for i in shown.tolist():
            facts = (row.neuron, row.layer, row.label[i], f"{score:.6g}")
            self._facts.append("\t".join(map(str, (*facts, f"{row.activation[i]:.6g}"))))
            self._tiles.append(thumbnail(images[i], self._side))

    def write(self) -> None:
        """Write the files, each whole, over those of before; nothing where no image is new.

        Raises:
            OSError: If the disk is full.
        """
        if len(self._tiles) == self._written:
            return
        folder = self._folder / "projector"
        folder.mkdir(parents=True, exist_ok=True)
        points = torch.cat(self._points).numpy()
        write_atomically(
            folder / "tensors.tsv",
            lambda file: np.savetxt(file, points, fmt="%.6g", delimiter="\t"),
        )
        facts = "\n".join(self._facts) + "\n"
        write_atomically(folder / "metadata.tsv", lambda file: file.write(facts.encode()))
        sprite = Image.fromarray(_sprite(self._tiles))
        write_atomically(
            folder / "sprite.png", lambda file: sprite.save(file, format="PNG", compress_level=1)
        )
        embedding = EmbeddingInfo(
            tensor_name="images",
            tensor_path="projector/tensors.tsv",
            metadata_path="projector/metadata.tsv",
        )
        embedding.sprite.image_path = "projector/sprite.png"
        embedding.sprite.single_image_dim.extend([self._side] * 2)
        # Last, since without it nobody asks for the others.
        config = text_format.MessageToString(ProjectorConfig(embeddings=[embedding]))
        write_atomically(
            self._folder / "projector_config.pbtxt", lambda file: file.write(config.encode())
        )
        self._written = len(self._tiles)


def _columns(count: int) -> int:
    """Images in a row of the square that holds that many, > 0."""
    return math.isqrt(count - 1) + 1


def _sprite(tiles: Sequence[Picture]) -> Picture:
    """Arrange images [S, S, 3] by rows in a square, as the projector expects them."""
    side, columns = len(tiles[0]), _columns(len(tiles))
    sprite = np.full((columns, columns, side, side, 3), 255, dtype=np.uint8)
    sprite.reshape(-1, side, side, 3)[: len(tiles)] = tiles
    return sprite.swapaxes(1, 2).reshape(columns * side, columns * side, 3)
