"""One process's session with a run: the lock that it holds, and what it writes."""

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from polylight.errors import InputError
from polylight.run.atomic import write_atomically
from polylight.run.manifest import Manifest, manifest_path, write_manifest
from polylight.run.resume import resume_manifest
from polylight.run.schema import NeuronRow
from polylight.run.store import REFERENCE, RunStore

Status = Literal["running", "finished", "interrupted"]


class RunSession:
    """Writes the rows and the manifest of one rank, and holds the rank's lock meanwhile.

    Args:
        run_dir: The run's directory; made if it is not there.
        fresh: The manifest of this session, all counters at zero.
        neurons: The rank's neurons, as normalised text.
        rank: Number of this writer, >= 0.

    Raises:
        InputError: If the directory cannot be written, holds another run, or the rank is held by
            a live process. Nothing that was there has changed then.
    """

    def __init__(
        self, run_dir: str | Path, fresh: Manifest, neurons: Collection[str], rank: int = 0
    ) -> None:
        self.run_dir, self.rank = Path(run_dir), rank
        self._neurons = set(neurons)
        resume_manifest(run_dir, fresh, rank)
        self._is_new = not manifest_path(run_dir, rank).is_file()
        self._store = RunStore(run_dir, rank)
        try:
            # Read again under the lock: another session may just have ended.
            self.earlier = resume_manifest(run_dir, fresh, rank)
            """What earlier sessions of this rank have done."""
            self._statuses = self._store.statuses()
            self.record("finished" if self.is_complete else "running")
        except BaseException:
            self._store.close()
            raise

    @property
    def finished(self) -> set[str]:
        """Neurons of any rank that are on the disk, as normalised text."""
        return set(self._statuses)

    @property
    def is_complete(self) -> bool:
        """Whether every neuron of this rank is on the disk."""
        return self._neurons <= self._statuses.keys()

    def append(self, rows: Sequence[NeuronRow]) -> None:
        """Write rows; once this returns they are safe on the disk.

        Raises:
            OSError: If the disk is full or fails; none of the rows is there then.
        """
        self._store.append(rows)
        self._statuses |= {row.neuron: row.status for row in rows}

    def record(
        self,
        status: Status,
        *,
        images: int = 0,
        image_steps: int = 0,
        slot_steps: int = 0,
        seconds: Mapping[str, float] | None = None,
        device: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the manifest.

        Args:
            status: Of the run.
            images: Images of this session.
            image_steps: Ascent steps that moved an image, likewise.
            slot_steps: Ascent steps of the pool times its slots, likewise.
            seconds: Time by stage, likewise.
            device: What more is known of how the run is computed.
        """
        current = self.earlier.advance(
            images=images, image_steps=image_steps, slot_steps=slot_steps, seconds=seconds
        )
        # Counted from what is on the disk, not carried along.
        counts = Counter(self._statuses[name] for name in self._neurons & self._statuses.keys())
        neurons = {
            "total": len(self._neurons),
            "finished": counts.total(),
            "failed": counts["failed"],
            "dead": counts["dead"],
        }
        how = {**current.device, **(device or {})}
        manifest = dataclasses.replace(current, status=status, neurons=neurons, device=how)
        write_manifest(self.run_dir, manifest, self.rank)
        self.recorded = time.perf_counter()
        """When the manifest was last written, by ``time.perf_counter``."""

    def write_file(self, name: str, content: bytes) -> None:
        """Write another file of the run, whole or not at all."""
        write_atomically(self.run_dir / name, lambda file: file.write(content))

    def _withdraw(self) -> None:
        """Remove what a session without a row has written, so that others may take its place."""
        manifest_path(self.run_dir, self.rank).unlink(missing_ok=True)
        if any(self.run_dir.glob("manifest*.json")):
            return  # of other ranks, which share the rest
        for name in ("config.yaml", REFERENCE):
            (self.run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(self.run_dir / "tensorboard", ignore_errors=True)

    def close(self) -> None:
        """Let another process write as this rank."""
        self._store.close()

    def __enter__(self) -> "RunSession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InputError) and self._is_new and not self._statuses:
            # What was asked for cannot be: with other settings it may be asked for here again.
            self._withdraw()
        self.close()
