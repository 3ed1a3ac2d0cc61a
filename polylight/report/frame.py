"""The mean that embeddings are compared from, as far as a run kept it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from polylight.report.content import Unreadable
from polylight.store import REFERENCE


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
