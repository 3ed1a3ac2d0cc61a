"""A neuron's result as one row: its columns, their types and their meaning."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 4

SEPARATION_THRESHOLD = 4.0
"""Separation at which one cluster and several are as likely.

Of 4,000 Gaussian clouds of sixteen points none got there by chance; the images of one real feature,
which are no Gaussian, come nearer."""

Status = Literal["ok", "dead", "failed"]
_MATRICES = ("embedding", "layer_input")
StopReason = Literal["elbow", "max_images"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NeuronRow:
    """All that is known of one neuron once it is finished.

    The axes are N images, K clusters and D embedding dimensions. A value that does not exist, such
    as the score of a dead neuron, is None, never a stand-in number.
    """

    neuron: str
    """The neuron as normalised text, such as ``blocks.4:17``; unique in a run."""
    layer: str
    """Layer of the neuron; of a composite, the layers of its parts joined by ``,``."""
    channel: int | None
    """Channel of a plain neuron; None for a composite."""
    status: Status
    """``dead``: no image drives it beyond what random ones do; ``failed``: none was finite."""
    score: float | None
    """Polysemanticity in [0, 1]."""
    score_low: float | None
    """Lower end of the 95 % interval of the score."""
    score_high: float | None
    """Upper end of the 95 % interval of the score."""
    separation: float | None
    """How much better the images fall into clusters than those of a single mode, in standard
    deviations (a gap statistic).

    From 4 on several clusters are likelier than one."""
    p_value: float | None
    """Probability of as good a split under a single mode, in [0, 1]."""
    q_value: float | None
    """The p-value after control of the false discovery rate over the layer, in [0, 1].

    It takes the whole layer and is worked out on reading: None in a row that was just made.
    """
    k: int | None
    """Number of clusters K, >= 1; 1 where one cluster is likelier than several."""
    k_stability: float | None
    """Share of random halves of the images that have the same K, in [0, 1]."""
    coverage: float | None
    """Share of what drives the neuron that its images have probably shown, in [0, 1]."""
    k_eff: float | None
    """Effective number of features, 1 / (1 - score)."""
    score_paper: float | None
    """The Alic et al. (2025) score C + D - C * D, in [0, 1]."""
    num_images: int
    """Number of images N that were made."""
    stop_reason: StopReason
    """Why no more images were made."""
    steps: int
    """Ascent steps that were spent, summed over the images."""
    bic: npt.NDArray[np.float64]
    """BIC of every number of clusters that was tried, in rising order."""
    label: npt.NDArray[np.int32]
    """[N]: cluster of each image, -1 for an image that is not valid."""
    activation: npt.NDArray[np.float32]
    """[N]: final activation of each image, in the layer's own units."""
    baseline: float
    """Mean activation of the random images that the ascents started from, in the same units."""
    component: npt.NDArray[np.int32]
    """[N]: component of a composite that each image drives most; 0 for a plain neuron."""
    component_scale: npt.NDArray[np.float64]
    """[P, 2]: offset and gain of each component; a composite combines (activation - offset) / gain.
    0 and 1 for a plain neuron, whose activation is in the layer's own units."""
    cluster_weight: npt.NDArray[np.float64]
    """[K]: strength of each cluster; sums to 1."""
    embedding: npt.NDArray[np.float32]
    """[N, D]: embedding of each image."""
    layer_input: npt.NDArray[np.float32]
    """[N, C]: what the layer below hands to the neuron's layer for each image, pooled over space,
    in standard deviations of the reference images; [N, 0] of a layer that reads the image."""
    image: Sequence[bytes]
    """N PNG files."""
    seed: int
    """Seed of the run."""
    seconds: float
    """Ascent time of its images, in seconds: its steps times the mean time of an image's step.

    Neurons climb together, so none has a wall-clock time of its own."""


def _columns() -> dict[str, tuple[pa.DataType, dict[str, Any]]]:
    """Every column's Arrow type, with the same type in the words of Hugging Face ``datasets``."""

    def value(arrow: pa.DataType, name: str) -> tuple[pa.DataType, dict[str, Any]]:
        return arrow, {"dtype": name, "_type": "Value"}

    def many(of: tuple[pa.DataType, dict[str, Any]]) -> tuple[pa.DataType, dict[str, Any]]:
        return pa.list_(of[0]), {"feature": of[1], "_type": "List"}

    text, i32, i64 = (
        value(pa.string(), "string"),
        value(pa.int32(), "int32"),
        value(pa.int64(), "int64"),
    )
    f32, f64 = value(pa.float32(), "float32"), value(pa.float64(), "float64")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}
    return {
        "neuron": text,
        "layer": text,
        "channel": i32,
        "status": text,
        "score": f64,
        "score_low": f64,
        "score_high": f64,
        "separation": f64,
        "p_value": f64,
        "q_value": f64,
        "k": i32,
        "k_stability": f64,
        "coverage": f64,
        "k_eff": f64,
        "score_paper": f64,
        "num_images": i32,
        "stop_reason": text,
        "steps": i64,
        "bic": many(f64),
        "label": many(i32),
        "activation": many(f32),
        "baseline": f64,
        "component": many(i32),
        "component_scale": many(many(f64)),
        "cluster_weight": many(f64),
        "embedding": many(many(f32)),
        "layer_input": many(many(f32)),
        "image": many(image),
        "seed": i64,
        "seconds": f64,
    }


def _schema() -> pa.Schema:
    """The Arrow schema, with the metadata that makes ``datasets`` decode the images."""
    columns = _columns()
    features = {name: feature for name, (_, feature) in columns.items()}
    return pa.schema(
        [(name, arrow) for name, (arrow, _) in columns.items()],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "polylight": json.dumps({"schema_version": SCHEMA_VERSION}),
        },
    )


SCHEMA = _schema()


def float_array(values: npt.NDArray[np.float64]) -> pa.Array:
    """Make a column of numbers, a NaN becoming a null.

    ``pa.array`` would import all of pandas where it is installed.
    """
    present = np.packbits(~np.isnan(values), bitorder="little")
    buffers = [pa.py_buffer(present), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.float64(), len(values), buffers)


def rows_to_table(rows: Sequence[NeuronRow]) -> pa.Table:
    """Turn rows into a table of schema version 4.

    Args:
        rows: Any number of rows.

    Returns:
        The table, in the order of the rows.

    Raises:
        ValueError: If a row contradicts itself: an unknown status, or arrays of unequal length.
    """
    for row in rows:
        _check(row)
    values: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in SCHEMA.names
    }
    for name in (*_MATRICES, "component_scale"):
        values[name] = [list(getattr(row, name)) for row in rows]
    values["image"] = [_named_images(row) for row in rows]
    return pa.table(
        [pa.array(values[field.name], type=field.type) for field in SCHEMA], schema=SCHEMA
    )


def table_to_rows(table: pa.Table) -> list[NeuronRow]:
    """Turn a table that has every column back into rows.

    Args:
        table: A table of schema version 4.

    Returns:
        The rows, in the order of the table.
    """
    plain = [n for n in SCHEMA.names if not pa.types.is_list(SCHEMA.field(n).type)]
    flat = ["bic", "label", "activation", "component", "cluster_weight"]
    rows = []
    for i, values in enumerate(table.select(plain).to_pylist()):
        arrays = {n: table[n][i].values.to_numpy(zero_copy_only=False) for n in flat}
        images = table["image"][i].values.field("bytes").to_pylist()
        rows.append(
            NeuronRow(
                **values,
                **arrays,
                embedding=_matrix(table["embedding"][i].values),
                layer_input=_matrix(table["layer_input"][i].values),
                component_scale=_matrix(table["component_scale"][i].values),
                image=images,
            )
        )
    return rows


def _matrix(vectors: pa.ListArray) -> npt.NDArray[Any]:
    """Stack the vectors of a list array, all of one length; [0, 0] when there are none."""
    stacked: npt.NDArray[Any] = vectors.flatten().to_numpy(zero_copy_only=False)
    return stacked.reshape(len(vectors), -1) if len(vectors) else stacked.reshape(0, 0)


def _named_images(row: NeuronRow) -> list[dict[str, Any]]:
    """Give each picture a file name, under which tools can show or export it."""
    stem = re.sub(r"[^\w.-]+", "_", row.neuron).strip("_")
    return [{"bytes": png, "path": f"{stem}/{i:03d}.png"} for i, png in enumerate(row.image)]


def _check(row: NeuronRow) -> None:
    """Refuse a row that contradicts itself."""
    for name, kind in (("status", Status), ("stop_reason", StopReason)):
        if getattr(row, name) not in get_args(kind):
            raise ValueError(
                f"{name} of neuron {row.neuron} is {getattr(row, name)!r}; "
                f"expected one of {', '.join(get_args(kind))}"
            )
    for name in ("label", "activation", "component", *_MATRICES, "image"):
        if len(getattr(row, name)) != row.num_images:
            raise ValueError(
                f"neuron {row.neuron} has num_images={row.num_images} "
                f"but {len(getattr(row, name))} entries in {name!r}; they must be equal"
            )
    for name in (*_MATRICES, "component_scale"):
        shape = getattr(row, name).shape
        if len(shape) != 2:
            raise ValueError(f"{name} of neuron {row.neuron} has shape {shape}; expected [N, D]")
    if len(row.cluster_weight) != (row.k or 0):
        raise ValueError(
            f"neuron {row.neuron} has k={row.k} but {len(row.cluster_weight)} cluster weights"
        )
