"""The record of a run: what made it, how far it is, and what it has cost."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from polylight.errors import InputError
from polylight.run.atomic import write_atomically

MANIFEST_VERSION = 2
NEURON_COUNTS = ("total", "finished", "failed", "dead")

_PACKAGES = ("torch", "lightning", "torchvision", "timm", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` holds; later ranks have a file each, ``manifest-00001.json``.

    Counters are those of this rank, over all the sessions in which it ran.
    """

    status: Literal["running", "finished", "interrupted"] = "running"
    """``running`` of a process that is gone means that it was killed."""
    created: str = dataclasses.field(default_factory=lambda: _now())
    """Start of the first session, ISO 8601, UTC."""
    updated: str = dataclasses.field(default_factory=lambda: _now())
    """Time of the last change, ISO 8601, UTC."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: _versions())
    """Of the last session: polylight, Python and the packages that results depend on."""
    device: Mapping[str, Any]
    """Of the last session, how it was run: ``name``, ``threads``, ``pool_size``, ``kernels``."""
    subject: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The network whose neurons are scored: ``name``, ``source``, ``weights_hash``."""
    embedder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The network that embeds the images, likewise."""
    reference_hash: str | None = None
    """Hash of the reference frame of the embeddings; None until it is known."""
    dictionaries: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By layer, such as ``sae(blocks.4,"encoder.safetensors")``, hash of what the file held."""
    seed: int
    """Seed of the run."""
    settings: Mapping[str, Any]
    """All else that affects a result, as JSON values. Neither the list of neurons, so that a run
    can be extended, nor how it is run: device, threads, logger, time limit."""
    neurons: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(NEURON_COUNTS, 0)
    )
    """``total``: to be scored; ``finished``: written, whatever came of them; ``failed`` and
    ``dead``: those of the finished ones."""
    images: int = 0
    """Images finished."""
    image_steps: int = 0
    """Useful ascent steps, summed over the images."""
    slot_steps: int = 0
    """Ascent steps of the pool times its slots, idle ones included."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall-clock time by stage, such as ``load``, ``ascent`` or ``total``, in seconds."""

    @property
    def settings_hash(self) -> str:
        """SHA-256 of the settings, whatever the order of their keys."""
        return hashlib.sha256(canonical(self.settings).encode()).hexdigest()

    @property
    def image_steps_per_second(self) -> float:
        """Useful ascent steps per second of ascent; 0 before any."""
        ascent = self.seconds.get("ascent", 0.0)
        return self.image_steps / ascent if ascent > 0 else 0.0

    @property
    def occupancy(self) -> float:
        """Share of slot steps that moved an image, in [0, 1]; 0 before any."""
        return self.image_steps / self.slot_steps if self.slot_steps else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in the total time, in [0, 1]; ``other`` is what none of them covers.

        Empty before any time was counted.
        """
        total = self.seconds.get("total", 0.0)
        if total <= 0:
            return {}
        shares = {s: time / total for s, time in self.seconds.items() if s != "total"}
        return {**shares, "other": 1.0 - sum(shares.values())}

    def advance(
        self,
        *,
        neurons: Mapping[str, int] | None = None,
        images: int = 0,
        image_steps: int = 0,
        slot_steps: int = 0,
        seconds: Mapping[str, float] | None = None,
    ) -> "Manifest":
        """Add what was done since to the counters.

        Args:
            neurons: How many more, by the keys of ``neurons``.
            images: Images finished.
            image_steps: Useful ascent steps.
            slot_steps: Ascent steps of the pool times its slots.
            seconds: Time spent by stage, in seconds.

        Returns:
            The manifest as it is now.
        """
        counted = {kind: n + (neurons or {}).get(kind, 0) for kind, n in self.neurons.items()}
        spent = dict(self.seconds)
        for stage, duration in (seconds or {}).items():
            spent[stage] = spent.get(stage, 0.0) + duration
        return dataclasses.replace(
            self,
            neurons=counted,
            images=self.images + images,
            image_steps=self.image_steps + image_steps,
            slot_steps=self.slot_steps + slot_steps,
            seconds=spent,
            updated=_now(),
        )


_FIELDS = tuple(field.name for field in dataclasses.fields(Manifest))
# For those who read the file; runs of earlier versions may lack some.
_DERIVED = ("settings_hash", "image_steps_per_second", "occupancy", "shares")


def write_manifest(run_dir: str | Path, manifest: Manifest, rank: int = 0) -> None:
    """Write a rank's manifest, whole or not at all.

    Args:
        run_dir: The run's directory, which exists.
        manifest: What to write.
        rank: The writer's number, >= 0; rank 0 writes ``manifest.json``.

    Raises:
        OSError: If it cannot be written; the earlier manifest is then untouched.
        TypeError: If the settings hold something that JSON does not know.
    """
    stored = {
        "schema_version": MANIFEST_VERSION,
        **{name: getattr(manifest, name) for name in _FIELDS},
        **{name: getattr(manifest, name) for name in _DERIVED},
    }
    text = json.dumps(stored, indent=2) + "\n"
    write_atomically(manifest_path(run_dir, rank), lambda file: file.write(text.encode()))


def read_manifest(run_dir: str | Path, rank: int = 0) -> Manifest | None:
    """Read a rank's manifest.

    Args:
        run_dir: The run's directory.
        rank: The writer's number, >= 0.

    Returns:
        The manifest, or None if there is none.

    Raises:
        InputError: If it cannot be understood, or is of a newer version.
    """
    path = manifest_path(run_dir, rank)
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())
        found = stored.pop("schema_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a manifest of polylight; restore it or choose another --run_dir"
        ) from error
    if found > MANIFEST_VERSION:
        raise InputError(
            f"{path} has schema version {found}, but this polylight knows versions up to "
            f"{MANIFEST_VERSION}; upgrade polylight"
        )
    odd = ", ".join(sorted((stored.keys() - {*_DERIVED}) ^ {*_FIELDS}))
    if odd:
        raise InputError(
            f"{path} is not a manifest of polylight (missing or unknown: {odd}); "
            "restore it or choose another --run_dir"
        )
    return Manifest(**{name: stored[name] for name in _FIELDS})


def manifest_path(run_dir: str | Path, rank: int = 0) -> Path:
    """Name a rank's manifest file."""
    return Path(run_dir) / (f"manifest-{rank:05d}.json" if rank else "manifest.json")


def canonical(value: Any) -> str:
    """Write JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _versions() -> dict[str, str]:
    """Look up the versions that results depend on."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"polylight": version("polylight"), "python": platform.python_version()} | packages


def _now() -> str:
    """Tell the time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
