"""Keys of random streams."""

import hashlib


def stream_key(*parts: object) -> int:
    """Hash the identity of a random stream to a key.

    Args:
        parts: What the stream belongs to, such as run seed, neuron and image index; their text
            counts.

    Returns:
        A signed 64-bit integer, the same on every machine.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
