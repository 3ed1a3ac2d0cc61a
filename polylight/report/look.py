"""The look that all charts share, and how they are drawn without a browser."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from polylight.inspect.palette import PALETTE as _FIRST

Spec = dict[str, Any]
"""A Vega-Lite specification."""

Width = int | Literal["container"]
"""Of a chart: pixels, or that of the element which a page gives it."""

PALETTE = (*_FIRST, "#882255")
"""Colours of clusters and of runs, told apart by colour-blind readers; wine, of Tol's "muted"
scheme, where those of Okabe and Ito end."""

UNIT = {"domain": [0, 1], "nice": False}
"""Scale of a score."""

TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]
"""Where the axis of a score is labelled."""

_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
# What an SVG file cannot hold: one such character in a name would end the process.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# What "container" means where there is none.
_PRINTED = 480


def to_svg(spec: Mapping[str, Any]) -> str:
    """Draw a chart without a browser; text stays text.

    Args:
        spec: A specification of this module; ``container`` counts as 480 pixels.

    Returns:
        An SVG file. Nothing is looked up in a network.
    """
    # It brings a JavaScript engine, which only a PDF needs.
    import vl_convert

    printed = {**spec, "width": _PRINTED} if spec.get("width") == "container" else dict(spec)
    svg: str = vl_convert.vegalite_to_svg(
        _as_xml_text(printed), vl_version="6.4", allowed_base_urls=[]
    )
    return svg


def _as_xml_text(value: Any) -> Any:
    """Replace characters that no SVG file can hold, in all texts of a specification."""
    match value:
        case str():
            return _NO_XML.sub("\ufffd", value)
        case dict():
            return {key: _as_xml_text(inner) for key, inner in value.items()}
        case list():
            return [_as_xml_text(inner) for inner in value]
        case _:
            return value


def dress(body: Spec, description: str, width: Width, ink: str) -> Spec:
    """Give a chart the look of all.

    Args:
        body: Data, marks and height.
        description: What it shows, for those who cannot see it.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        The whole specification.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": width,
        "background": None,
        **body,
        "config": {
            "font": _FONT,
            "view": {"stroke": None},
            "axis": {
                "domain": False,
                "ticks": False,
                "labelColor": ink,
                "labelFontSize": 11,
                "labelOpacity": 0.8,
                "labelFlush": False,
                "labelPadding": 6,
                "labelLimit": 220,
                "titleColor": ink,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "titlePadding": 8,
                "gridColor": ink,
                "gridOpacity": 0.12,
            },
            "legend": {
                "labelColor": ink,
                "labelFontSize": 11,
                "titleColor": ink,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
            },
            "text": {"color": ink, "fontSize": 11},
        },
    }


def count(number: int, thing: str) -> str:
    """Write a number of things, such as ``1 layer`` and ``2,048 neurons``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
