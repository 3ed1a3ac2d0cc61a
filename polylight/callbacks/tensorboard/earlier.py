"""What the sessions before this one have left in a TensorBoard folder."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

# A record of an event file: its length, a checksum of that, the event, a checksum of the event.
_HEAD = struct.Struct("<Q4x")
_CHECKSUM = 4


class Earlier(NamedTuple):
    """What a folder's event files hold."""

    step: int
    """The last step of any event; 0 without events."""
    tags: frozenset[str]
    """Of all that was written."""


def read_earlier(folder: str | Path) -> Earlier:
    """Read steps and tags of a folder's event files.

    Checksums are not looked at: in Python they take minutes where the rest takes a second. A file
    is read up to the record that a killed process left unfinished.

    Args:
        folder: Where the event files are, not in folders below; it may be missing.

    Returns:
        The last step and the tags.
    """
    step, tags = 0, set[str]()
    for path in sorted(Path(folder).glob("*tfevents*")):
        for event in _events(path):
            step = max(step, event.step)
            tags.update(value.tag for value in event.summary.value)
    return Earlier(step, frozenset(tags))


def _events(path: Path) -> Iterator[Event]:
    """Yield the events of a file up to the first that is not whole."""
    left = path.stat().st_size
    with path.open("rb") as file:
        while left >= _HEAD.size:
            (length,) = _HEAD.unpack(file.read(_HEAD.size))
            left -= _HEAD.size + length + _CHECKSUM
            if left < 0:
                return
            try:
                yield Event.FromString(file.read(length))
            except DecodeError:
                return
            file.seek(_CHECKSUM, 1)
