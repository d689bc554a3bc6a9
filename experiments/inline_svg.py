"""Put a drawing into a page: only what draws, in the page's own colours.

A figure's file lies in a run folder, where anybody may have edited it. So it is parsed, and
everything but shapes, text and references within the drawing is refused.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from experiments.figure_style import THEME

DRAWING = frozenset(
    {"svg", "g", "defs", "clipPath", "path", "use", "text", "tspan", "rect", "circle", "ellipse"}
    | {"line", "polyline", "polygon", "title", "desc", "image"}
)
DROPPED = frozenset({"metadata", "style"})
"""Matplotlib writes both; the page needs neither."""

_REFERENCE = re.compile(r"url\(#([\w.:-]+)\)")
_COLOR = re.compile("|".join(THEME))
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_EXTERNAL = re.compile(r"url\(\s*[^#\s]|javascript:|@import|expression\(", re.IGNORECASE)
_EMBEDDED_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=\s]*\Z")


def inline_svg(svg: bytes, *, prefix: str, label: str) -> str:
    """Return a drawing as markup for an HTML page.

    Colours of ``figure_style.THEME`` become ``var(--fig-NAME)``, ids get a prefix so that two
    drawings on one page do not meet, and text takes the page's font.

    Args:
        svg: The file's content.
        prefix: Put before every id; another one for each drawing of the page.
        label: What the drawing shows, for readers who do not see it.

    Returns:
        One ``<svg>`` element, as wide as it was drawn at most and scrollable below that.

    Raises:
        ValueError: If it is no SVG, or holds a script, an event handler, a link that leads out of
            the drawing, or any other element that does not draw.
    """
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"the figure {prefix} is not an SVG ({error}); draw it again") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"the figure {prefix} is a <{_local(root.tag)}>, not an <svg>")
    clean = _clean(root, prefix)
    box = (clean.get("viewBox") or "").split()
    if len(box) != 4:
        raise ValueError(f"the figure {prefix} has no viewBox, so its size is unknown")
    width = float(box[2])
    for name in ("width", "height", "version"):
        clean.attrib.pop(name, None)
    # Matplotlib counts in points, the page in pixels; much narrower than drawn, text is too small.
    clean.set("style", f"max-width:{width * 4 / 3:.0f}px;min-width:{width * 1.15:.0f}px")
    clean.set("role", "img")
    clean.set("aria-label", label)
    return ElementTree.tostring(clean, encoding="unicode")


def _clean(element: ElementTree.Element, prefix: str) -> ElementTree.Element:
    """Copy what is allowed, without namespaces, which HTML does not know."""
    tag = _local(element.tag)
    if tag not in DRAWING:
        raise ValueError(
            f"the figure {prefix} holds <{tag}>, which does not draw; figures written by adtower "
            "never do. Was the file changed?"
        )
    copy = ElementTree.Element(tag)
    for name, value in element.attrib.items():
        copy.set(_local(name), _attribute(_local(name), value, prefix))
    copy.text = element.text if tag in ("text", "tspan", "title", "desc") else None
    for child in element:
        # Comments have a function for a tag.
        if isinstance(child.tag, str) and _local(child.tag) not in DROPPED:
            copy.append(_clean(child, prefix))
    return copy


def _attribute(name: str, value: str, prefix: str) -> str:
    if name.lower().startswith("on") or _EXTERNAL.search(value):
        raise ValueError(
            f'the figure {prefix} holds {name}="{value[:60]}", which reaches out of the drawing; '
            "figures written by adtower never do. Was the file changed?"
        )
    if name == "href":
        if value.startswith("#"):
            return f"#{prefix}-{value[1:]}"
        if _EMBEDDED_IMAGE.match(value):
            return value
        raise ValueError(
            f"the figure {prefix} links to {value[:60]!r}; only places within the drawing are "
            "allowed. Was the file changed?"
        )
    if name == "id":
        return f"{prefix}-{value}"
    value = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    value = _COLOR.sub(lambda match: f"var(--fig-{THEME[match.group()][0]})", value)
    return _FONT.sub("", value)


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
