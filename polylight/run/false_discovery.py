"""P-values of many neurons at once.

``scipy.stats.false_discovery_control`` does the same, and the tests hold this to it; but q-values
are worked out whenever a run is read, and to import ``scipy.stats`` takes .9 s of CPU time, more
than all that ``polylight show`` does.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polylight.errors import InputError


def q_values(p: npt.ArrayLike, group: Sequence[str]) -> npt.NDArray[np.float64]:
    r"""Adjust p-values for the number of neurons in their layer.

    .. math:: q_{(i)} = \min_{j \ge i} \min\bigl(1, \tfrac{m}{j} p_{(j)}\bigr)

    over the m p-values of a group in rising order: calling all with q <= a positive keeps the
    expected share of false calls below a (Benjamini & Hochberg 1995).

    Args:
        p: Float [U] in [0, 1]; a NaN stays NaN and is not counted.
        group: The group of each p-value, such as the layer.

    Returns:
        Float64 [U] in [0, 1], >= p.

    Raises:
        InputError: The lengths differ, or a p-value is out of range.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.shape != (len(group),):
        raise InputError(f"every p-value needs a group, got {list(values.shape)} and {len(group)}")
    there = ~np.isnan(values)
    given = values[there]
    if ((given < 0) | (given > 1)).any():
        raise InputError(f"p-values must be in [0, 1], got {given.min()} to {given.max()}")
    names = {name: index for index, name in enumerate(dict.fromkeys(group))}
    which = np.array([names[name] for name in group], dtype=np.int64)
    adjusted = np.full_like(values, np.nan)
    for index in range(len(names)):
        mine = np.flatnonzero((which == index) & there)
        falling = mine[np.argsort(-values[mine], kind="stable")]
        rank = np.arange(len(mine), 0, -1, dtype=np.float64)
        # The quotient is 1 or more; formed first, it is exactly 1 where nothing is corrected.
        scaled = np.minimum(values[falling] * (len(mine) / rank), 1.0)
        adjusted[falling] = np.minimum.accumulate(scaled)
    return adjusted
