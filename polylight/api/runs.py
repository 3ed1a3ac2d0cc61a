"""A scored run as Python holds it: a table, its neurons, their clusters and images."""

import dataclasses
import shutil
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from polylight.api.html import neuron_html, run_html
from polylight.errors import InputError, nearest
from polylight.inspect.neuron_table import SHOWN
from polylight.inspect.query import read_finished
from polylight.report.vectors import read_centre
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.png import decode_png
from polylight.run.schema import NeuronRow
from polylight.run.store import part_paths, read_rows, read_run, stream_rows


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredCluster:
    """The images of one feature, those that drive the neuron most first.

    Attributes:
        images: uint8 [n, H, W, 3].
        activations: float32 [n], in the layer's own units.
        share: Its strength as a share of all of its neuron's clusters, in [0, 1].
        indices: int64 [n], which of the neuron's images these are.
    """

    images: npt.NDArray[np.uint8]
    activations: npt.NDArray[np.float32]
    share: float
    indices: npt.NDArray[np.int64]

    @property
    def pictures(self) -> list[Image.Image]:
        """The images as those of PIL."""
        return [Image.fromarray(image) for image in self.images]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredNeuron:
    """One neuron of a run.

    Attributes:
        row: All that is known of it, as the run's directory holds it.
    """

    row: NeuronRow

    @property
    def name(self) -> str:
        """The neuron as normalised text."""
        return self.row.neuron

    @property
    def score(self) -> float | None:
        """How polysemantic it is, in [0, 1]; None of one that is ``dead`` or ``failed``."""
        return self.row.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the score."""
        low, high = self.row.score_low, self.row.score_high
        return None if low is None or high is None else (low, high)

    @property
    def k(self) -> int | None:
        """Number of clusters."""
        return self.row.k

    @property
    def status(self) -> str:
        """``ok``, ``dead`` or ``failed``."""
        return self.row.status

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """All its images, in the order in which they were made: uint8 [N, H, W, 3]."""
        if not len(self.row.image):
            return np.zeros((0, 0, 0, 3), np.uint8)
        return np.stack([decode_png(png) for png in self.row.image])

    @property
    def activations(self) -> npt.NDArray[np.float32]:
        """How strongly each image drives it, float32 [N], in the layer's own units."""
        return self.row.activation

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Cluster of each image, int32 [N]; -1 of one that is not valid."""
        return self.row.label

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Each image as the embedder sees it, raw: float32 [N, D]."""
        return self.row.embedding

    @cached_property
    def clusters(self) -> list[ScoredCluster]:
        """Its clusters, the strongest first; images that are not valid are in none."""
        row, found = self.row, []
        for cluster in np.argsort(-row.cluster_weight, kind="stable").tolist():
            members = np.flatnonzero(row.label == cluster)
            members = members[np.argsort(-row.activation[members], kind="stable")]
            share = float(row.cluster_weight[cluster])
            images = self.images[members]
            found.append(ScoredCluster(images, row.activation[members], share, members))
        return found

    def __repr__(self) -> str:
        if self.score is None:
            return f"<{self.name}: {self.status}>"
        clusters = f"{self.k} cluster" + ("s" if self.k != 1 else "")
        return f"<{self.name}: {self.score:.2f}, {clusters} in {self.row.num_images} images>"

    def _repr_html_(self) -> str:
        return neuron_html(self.row)


class ScoredRun:
    """The scored neurons of a run, which are in its directory; iterating gives each of them.

    Args:
        run_dir: The run's directory.
        is_temporary: Whether it is to go with this object.

    Raises:
        InputError: If the directory is no run, or holds no finished neuron.
    """

    def __init__(self, run_dir: str | Path, *, is_temporary: bool = False) -> None:
        self._run_dir = Path(run_dir).expanduser()
        self._discard = (
            weakref.finalize(self, shutil.rmtree, self._run_dir, ignore_errors=True)
            if is_temporary
            else None
        )
        read_finished(self._run_dir, ["neuron"])

    @property
    def run_dir(self) -> Path:
        """The run's directory; a temporary one goes with this object."""
        return self._run_dir

    @property
    def manifest(self) -> Manifest | None:
        """What made the run and what it has cost; None of a run that kept none."""
        return read_manifest(self._run_dir)

    @property
    def neurons(self) -> list[str]:
        """Names of the finished neurons, in the order in which they finished."""
        names: list[str] = read_run(self._run_dir, columns=["neuron"])["neuron"].to_pylist()
        return names

    @property
    def center(self) -> npt.NDArray[np.float32] | None:
        """Mean embedding of the reference images, [D]: what the score takes from embeddings.

        It is the ``center`` of :func:`polylight.score_embeddings`. None of a run that kept none.
        """
        return read_centre(self._run_dir)[0]

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Give the run as an Arrow table, a row for each neuron.

        Args:
            columns: The columns wanted, such as ``["neuron", "score", "embedding"]``; None for all
                that hold one value, with ``activation_median``.

        Returns:
            The table.

        Raises:
            InputError: If there is no such column.
        """
        return read_finished(self._run_dir, list(SHOWN if columns is None else columns))

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """Give the run as a DataFrame of pandas, a row for each neuron.

        Args:
            columns: As for :meth:`to_arrow`.

        Returns:
            The DataFrame.

        Raises:
            InputError: If there is no such column, or pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                "to_pandas() needs pandas, which is not installed; pip install pandas, or take "
                "to_arrow()."
            ) from error
        return self.to_arrow(columns).to_pandas()

    def save(self, path: str | Path) -> Path:
        """Keep the run in another directory, which is the run's from now on.

        Args:
            path: A directory that is new or empty.

        Returns:
            The directory.

        Raises:
            InputError: If something is there already.
        """
        path = Path(path).expanduser()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} is there already; save the run in a directory of its own.")
        shutil.copytree(self._run_dir, path, dirs_exist_ok=True)
        self._run_dir = path
        if self._discard is not None:
            self._discard()
        return path

    def report(self, path: str | Path | None = None, *, pdf: bool = True) -> Path:
        """Write a site of the run to look at offline, and a PDF: as ``polylight report``.

        Args:
            path: Directory to write; ``report`` in the run's own unless given.
            pdf: Whether to write report.pdf into it too.

        Returns:
            The page to open.

        Raises:
            InputError: If it cannot be written there, or a package is missing.
        """
        from polylight.report.command import write_report

        out = None if path is None else str(Path(path).expanduser())
        return write_report([str(self._run_dir)], out, pdf=pdf).pages[0]

    def __getitem__(self, neuron: str) -> ScoredNeuron:
        """A neuron by its name, such as ``layer4:3``.

        Raises:
            InputError: If the run has no such neuron.
        """
        name = "".join(neuron.split())
        rows = read_rows(self._run_dir, [name])
        if not rows:
            raise InputError(f"the run has no neuron {neuron!r}; {nearest(name, self.neurons)}.")
        return ScoredNeuron(rows[0])

    def __contains__(self, neuron: object) -> bool:
        return isinstance(neuron, str) and "".join(neuron.split()) in self.neurons

    def __len__(self) -> int:
        return len(self.neurons)

    def __iter__(self) -> Iterator[ScoredNeuron]:
        table = read_run(self._run_dir, columns=["neuron", "q_value"])
        q_values = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
        for row in stream_rows(part_paths(self._run_dir)):
            yield ScoredNeuron(dataclasses.replace(row, q_value=q_values[row.neuron]))

    def __repr__(self) -> str:
        count = len(self)
        of = f" of {self.manifest.subject['name']}" if self.manifest else ""
        # Nobody needs the name of one that goes with this object.
        is_kept = self._discard is None or not self._discard.alive
        where = self._run_dir if is_kept else "a temporary directory"
        return f"<ScoredRun: {count} neuron{'s' if count != 1 else ''}{of} in {where}>"

    def _repr_html_(self) -> str:
        return run_html(self._run_dir)


def open_run(run_dir: str | Path) -> ScoredRun:
    """Open the directory of a run, however it was made.

    Args:
        run_dir: The run's directory.

    Returns:
        Its scored neurons.

    Raises:
        InputError: If the directory is no run, or holds no finished neuron.
    """
    return ScoredRun(run_dir)
