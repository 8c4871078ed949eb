"""A chart as standalone SVG: Vega draws it, and what a page has no use for is left out.

Nothing in a figure runs, loads or carries a style; its colours are attributes, and a class a colour
lets a style sheet turn them for dark screens. No text is measured, so the bytes do not depend on
the fonts of a machine. Altair and Vega are imported when a figure is drawn, not before.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from auditor.text import clean_text

if TYPE_CHECKING:
    import altair as alt

INK, QUIET, LINE, TRACK, PAPER = "#1c2127", "#56606b", "#d7dbe0", "#e4e7eb", "#ffffff"
BEFORE, AFTER, TUNED, LOW = "#b42318", "#2f6487", "#66788a", "#8a5300"
OTHER = "#9aa3ad"
CATEGORIES = (
    "#0072b2", "#d55e00", "#009e73", "#aa4499", "#a07800",
    "#4aa3df", "#882255", "#3f7d20", "#e377a2", "#4b3f99",
)  # fmt: skip
"""After Okabe and Ito, and Tol: told apart by people who are colour-blind, as far as ten can be."""

ROLES = {
    INK: "ink", QUIET: "quiet", LINE: "line", TRACK: "track", PAPER: "paper", BEFORE: "before",
    AFTER: "after", TUNED: "tuned", LOW: "low", OTHER: "other",
    **{colour: f"c{number}" for number, colour in enumerate(CATEGORIES)},
}  # fmt: skip
"""Colour -> the name that a style sheet knows it by, as `f-NAME` (fill) and `s-NAME` (stroke)."""

SVG = "http://www.w3.org/2000/svg"
CONFIG = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 11, "tickSize": 4,
        "labelColor": QUIET, "domainColor": LINE, "tickColor": LINE, "gridColor": LINE,
    },
}  # fmt: skip

KEPT = frozenset(
    {"d", "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity",
     "opacity", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy", "r",
     "text-anchor", "font-size", "font-weight", "font-family", "clip-path", "id"}
)  # fmt: skip
"""Attributes that a figure keeps."""
DEFAULTS = {"opacity": "1", "fill-opacity": "1", "transform": "translate(0,0)", "stroke": "none"}


def draw(
    chart: alt.LayerChart | alt.FacetChart,
    *,
    width: int,
    height: int,
    sides: tuple[int, int, int, int],
    title: str,
    description: str,
    prefix: str,
) -> str:
    """The chart as SVG; `sides` is the room on the left, above, on the right and below."""
    left, top, right, bottom = sides
    spec = chart.to_dict(validate=False) | {
        "width": width,
        "height": height,
        "autosize": "none",
        "padding": {"left": left, "top": top, "right": right, "bottom": bottom},
        "background": None,
        "config": CONFIG,
    }
    size = (left + width + right, top + height + bottom)
    drawn = _vega(json.dumps(spec, sort_keys=True))
    return _tidy(drawn, size, clean_text(title), clean_text(description, limit=400), prefix)


@lru_cache(maxsize=256)
def _vega(spec: str) -> str:
    """The same figure is often wanted again: in tests, and when one result has several reports."""
    import vl_convert

    return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])


def _tidy(svg: str, size: tuple[int, int], title: str, description: str, prefix: str) -> str:
    """Vega's SVG without what a page has no use for, and with words for who cannot see it."""
    # The text is Vega's own, in which every text of a result is escaped.
    drawn = ElementTree.fromstring(svg)  # noqa: S314
    root = ElementTree.Element(
        "svg", {"xmlns": SVG, "class": "vega", "role": "img", "width": str(size[0]),
        "height": str(size[1]), "viewBox": f"0 0 {size[0]} {size[1]}"},
    )  # fmt: skip
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "desc").text = description
    for child in drawn:
        root.extend(_tidied(child, prefix))
    return ElementTree.tostring(root, encoding="unicode")


def _tidied(element: ElementTree.Element, prefix: str) -> list[ElementTree.Element]:
    """The element as it is kept: itself, its children, or nothing."""
    tag = element.tag.removeprefix(f"{{{SVG}}}")
    if element.get("display") == "none" or element.get("d") in ("", "M0,0h0v0h0Z"):
        return []
    children = [kept for child in element for kept in _tidied(child, prefix)]
    attributes = {
        name: _short_numbers(_prefixed(name, value, prefix))
        for name, value in element.attrib.items()
        if name in KEPT and value != DEFAULTS.get(name)
    }
    classes = [
        f"{kind[0]}-{ROLES[attributes[kind]]}"
        for kind in ("fill", "stroke")
        if attributes.get(kind) in ROLES
    ]
    if tag == "g" and not children:
        return []
    if tag == "g" and not attributes:
        return children
    if classes:
        attributes["class"] = " ".join(classes)
    kept = ElementTree.Element(tag, attributes)
    kept.text = element.text
    if said := element.get("aria-label"):
        ElementTree.SubElement(kept, "title").text = said
    kept.extend(children)
    return [kept]


def _prefixed(name: str, value: str, prefix: str) -> str:
    """Names within a figure are its own, also where several figures share a page."""
    if name == "id":
        return f"{prefix}-{value}"
    return re.sub(r"url\(#", f"url(#{prefix}-", value)


def _short_numbers(value: str) -> str:
    """Two decimals are a hundredth of a pixel."""
    return re.sub(r"-?\d+\.\d{2,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
