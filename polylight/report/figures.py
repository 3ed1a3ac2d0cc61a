"""How a report writes numbers and times."""

import math
from datetime import datetime

from polylight.report.content import NeuronSummary

NONE = "\u2013"
"""An en dash, where there is no number."""

_FORMS = {
    "score": ".3f",
    "score_low": ".2f",
    "score_high": ".2f",
    "separation": ".1f",
    "p_value": ".3f",
    "q_value": ".3f",
    "k": "d",
    "k_stability": ".2f",
    "k_eff": ".2f",
    "coverage": ".2f",
    "score_paper": ".3f",
    "num_images": ",d",
    "steps": ",d",
}


def number(value: float | None, form: str = "#.3g") -> str:
    """Format a number, or an en dash where there is none.

    Args:
        value: Any number, or None.
        form: A format as of ``format``.

    Returns:
        The text, with a minus sign that is one.
    """
    if value is None or not math.isfinite(value):
        return NONE
    return format(value, form).rstrip(".").replace("-", "\u2212")


def shown(neuron: NeuronSummary, column: str) -> str:
    """Format a column of a neuron's numbers as every table of a report does."""
    return number(neuron.values[column], _FORMS[column])


def interval(neuron: NeuronSummary) -> str:
    """Format the interval of a neuron's score."""
    low, high = shown(neuron, "score_low"), shown(neuron, "score_high")
    return NONE if NONE in (low, high) else f"{low} to {high}"


def percent(share: float) -> str:
    """Format a share in whole percent, as with two decimals; what is not 0 does not read as 0."""
    # Another order would write .815 as 82 % beside .81.
    return "under 1 %" if 0 < share < 0.005 else f"{100 * float(f'{share:.2f}'):.0f} %"


def counted(count: int, what: str) -> str:
    """Write how many there are of something whose plural takes an s."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def when(stamp: str) -> str:
    """Write an ISO 8601 time for people; what is none stays as it is."""
    try:
        return datetime.fromisoformat(stamp).strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    except ValueError:
        return stamp
