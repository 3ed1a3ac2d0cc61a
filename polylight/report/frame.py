"""What images are compared by: centred embeddings beside layer inputs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from polylight.report.content import Unreadable
from polylight.report.similar import unit_vectors
from polylight.run.store import REFERENCE


def read_centre(run_dir: Path) -> tuple[npt.NDArray[np.float32] | None, list[Unreadable]]:
    """Read the mean embedding of a run's reference images.

    Args:
        run_dir: The run's directory.

    Returns:
        Float32 [D], or None where the run kept none or it cannot be read; and then what could not.
    """
    path = run_dir / REFERENCE
    if not path.is_file():
        return None, []
    try:
        with safe_open(path, framework="numpy") as file:
            mean: npt.NDArray[np.float32] = file.get_tensor("mean").astype(np.float32)
    except (SafetensorError, OSError) as error:
        return None, [Unreadable(path=path, reason=str(error).splitlines()[0])]
    return mean, []


def centred(
    embedding: npt.NDArray[np.floating], centre: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.floating]:
    """Take the mean [D] from embeddings [N, D], as the score does; None leaves them raw."""
    if centre is None or embedding.shape[1:] != centre.shape:
        return embedding
    return embedding - centre


def joined(
    embedding: npt.NDArray[np.floating], layer_input: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Put both views of images side by side, as the score does: float32 [N, D + C].

    Args:
        embedding: Float [N, D], centred.
        layer_input: Float [N, C], what the layer below hands on; C may be 0.

    Returns:
        The two, each of length 1; the embedding alone where nothing is layer_input.
    """
    return np.hstack([unit_vectors(embedding), unit_vectors(layer_input)]).astype(np.float32)
