"""The proof of the score: neurons of known polysemanticity, and how well the score tells them."""

from polylight.planted.outcome import Outcome
from polylight.planted.planted import (
    Planted,
    allowed_channels,
    draw_planted,
    half,
    pool_images,
)
from polylight.planted.plot import draw
from polylight.planted.similarity import (
    Pair,
    channel_correlations,
    similar_and_dissimilar,
)
from polylight.planted.summary import Summary, summarise
from polylight.planted.table import print_summary

__all__ = [
    "Outcome",
    "Pair",
    "Planted",
    "Summary",
    "allowed_channels",
    "channel_correlations",
    "draw",
    "draw_planted",
    "half",
    "pool_images",
    "print_summary",
    "similar_and_dissimilar",
    "summarise",
]
