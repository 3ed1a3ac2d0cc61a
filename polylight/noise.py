"""What Lightning and others say every time, which says nothing about a run."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What they report on rank 0 in passing; a profiler's report, say, comes from its own logger.
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep what Lightning says of every training off the terminal; its warnings stay.

    A warning goes too: that networks are in eval mode, which they have to be. Loggers and filters
    are as before at the end of the block.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
            # Neurons are drawn as there is room for them; what it warns of does not matter here.
            warnings.filterwarnings("ignore", ".*`dataloader_iter`")
            # Lightning 2.6.6 asks torch's pytree in a way that torch 2.15 deprecates.
            warnings.filterwarnings("ignore", ".*LeafSpec")
            # timm loads a bar of tqdm, which asks for a package that polylight's bar does not need.
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
