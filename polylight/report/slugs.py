"""Names of files and pages for names that may hold anything."""

import hashlib
import re

# A name in which nothing is lost if its one colon becomes a dash. Capitals are left out, as file
# systems may take them for small letters.
_PLAIN = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*(:[0-9]+)?")
_OTHERS = re.compile(r"[^A-Za-z0-9_.-]+|\.{2,}")
_LONGEST = 100
_DIGITS = 12


def slug(text: str) -> str:
    """Turn the name of a neuron or a layer into a name for its page, the same in every run.

    ``blocks.4:17`` becomes ``blocks.4-17``. Where something would be lost, the name ends in a hash
    of the text, which begins with ``x`` as no channel does.

    Args:
        text: Any text.

    Returns:
        Letters, digits, ``-``, ``_`` and ``.``, of which neither a dot nor a dash comes first, at
        most 100 characters; another one for any other text, even where case does not count.
    """
    if _PLAIN.fullmatch(text) and len(text) <= _LONGEST:
        return text.replace(":", "-")
    # A lone surrogate is no text that could be encoded otherwise.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    readable = _OTHERS.sub("-", text).strip(".-")[: _LONGEST - _DIGITS - 2].rstrip(".-")
    return f"{readable}-x{digest}" if readable else f"x{digest}"
