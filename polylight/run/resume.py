"""Which directory a run may write in: a fresh one, or that of the same run."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polylight.errors import InputError
from polylight.run.manifest import Manifest, canonical, manifest_path, read_manifest
from polylight.run.parts import list_parts
from polylight.run.store import NEURONS_DIR

_MOST_DIFFERENCES = 5
_LONGEST_VALUE = 48


def resume_manifest(run_dir: str | Path, fresh: Manifest, rank: int = 0) -> Manifest:
    """Find out whether a run may write in a directory, and where it takes up.

    A directory that is new, empty or of a run of the same settings, seed and weights may be
    written in. Hashes of weights and of the reference are compared where both manifests know
    them. Nothing is written here.

    Args:
        run_dir: The run's directory.
        fresh: The manifest of this session, all counters at zero.
        rank: The writer's number, >= 0.

    Returns:
        The manifest to go on with: the fresh one, and when a run is continued, with the counters
        and the time of creation that were there.

    Raises:
        InputError: If the directory holds a run of other settings or something that is no run.
    """
    run_dir = Path(run_dir)
    try:
        if run_dir.exists() and not run_dir.is_dir():
            raise InputError(f"{run_dir} is a file; choose another --run_dir")
    # Of a name that is too long, say.
    except OSError as error:
        raise InputError(
            f"{run_dir} cannot be a run directory ({error.strerror or error}); choose another "
            "--run_dir"
        ) from error
    # Listed before the manifests are: those that other ranks write meanwhile are no foreign files.
    found = sorted(run_dir.iterdir()) if run_dir.is_dir() else []
    names = [path.name for path in found if not path.name.startswith(".") and not _is_unused(path)]
    ranks = _ranks(run_dir)
    if names and not ranks:
        shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise InputError(
            f"{run_dir} is not empty and holds no run ({shown}); choose another --run_dir"
        )
    for other in ranks:
        there = read_manifest(run_dir, other)
        if there is not None and (changed := _differences(there, fresh)):
            raise InputError(
                f"{run_dir} holds a run of other settings ({changed}); "
                "choose another --run_dir, or the settings of before to continue it"
            )
    before = read_manifest(run_dir, rank)
    return fresh if before is None else _continued(before, fresh)


def _is_unused(path: Path) -> bool:
    """Whether this is the folder of parts of a session that was killed before its first write."""
    return path.name == NEURONS_DIR and path.is_dir() and not list_parts(path)


def _ranks(run_dir: Path) -> list[int]:
    """List the ranks that have a manifest."""
    later = sorted(int(p.stem.split("-")[1]) for p in run_dir.glob("manifest-[0-9]*.json"))
    return [0, *later] if manifest_path(run_dir).is_file() else later


def _continued(before: Manifest, fresh: Manifest) -> Manifest:
    """Take what is carried over from an earlier session into a fresh manifest."""
    counters = ("images", "image_steps", "slot_steps", "seconds")
    device = dict(fresh.device)
    if before.device.get("name") == device.get("name"):
        # Measured anew, the pool might have another size, and with it the last digits.
        device = {**before.device, **device}
    return dataclasses.replace(
        fresh,
        device=device,
        created=before.created,
        reference_hash=fresh.reference_hash or before.reference_hash,
        dictionaries={**before.dictionaries, **fresh.dictionaries},
        **{name: getattr(before, name) for name in counters},
    )


def _differences(there: Manifest, fresh: Manifest) -> str:
    """Say what makes the results of two manifests differ, as ``name: old -> new``; or nothing."""
    old, new = _identity(there), _identity(fresh)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    # A hash is unknown until the thing is loaded: that is no difference.
    changed = [n for n in changed if (n in old and n in new) or not n.endswith("_hash")]
    named = [
        f"{n}: {_short(old.get(n, 'absent'))} -> {_short(new.get(n, 'absent'))}"
        for n in changed[:_MOST_DIFFERENCES]
    ]
    more = len(changed) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _identity(manifest: Manifest) -> dict[str, str]:
    """List all that a result depends on: settings, seed, and the hashes that are known."""
    hashes = {
        "subject.weights_hash": manifest.subject.get("weights_hash"),
        "embedder.weights_hash": manifest.embedder.get("weights_hash"),
        "reference_hash": manifest.reference_hash,
        **{f"{layer} weights_hash": found for layer, found in manifest.dictionaries.items()},
    }
    known = {name: value for name, value in hashes.items() if value is not None}
    return dict(_flatten(manifest.settings)) | dict(_flatten({"seed": manifest.seed, **known}))


def _flatten(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Give every leaf of nested settings its dotted name and its value as JSON."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, canonical(settings)


def _short(text: str) -> str:
    """Cut a long value."""
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
