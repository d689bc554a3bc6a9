import pytest

from experiments.figure_style import BLUE
from experiments.inline_svg import inline_svg

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 50" width="90pt">'


def svg(inside: str) -> bytes:
    return f"{HEAD}{inside}</svg>".encode()


def test_known_colours_become_variables_and_others_stay():
    markup = inline_svg(
        svg(f'<path style="fill: {BLUE}; stroke: #123456" d="M0 0"/>'), prefix="f", label=""
    )
    assert "fill: var(--fig-blue); stroke: #123456" in markup


def test_ids_and_what_refers_to_them_get_the_prefix():
    inside = '<g id="a" clip-path="url(#b)"><use href="#a"/></g>'
    markup = inline_svg(svg(inside), prefix="figure_4", label="")
    for part in ('id="figure_4-a"', 'clip-path="url(#figure_4-b)"', 'href="#figure_4-a"'):
        assert part in markup


def test_the_label_and_the_text_are_escaped():
    markup = inline_svg(
        svg("<text>&lt;script&gt;1 &amp; 2&lt;/script&gt;</text>"), prefix="f", label='"><script>'
    )
    assert "<script" not in markup and "&lt;script&gt;1 &amp; 2" in markup


def test_style_sheets_and_metadata_are_dropped():
    inside = "<metadata><a href='http://x'/></metadata><defs><style>*{color:red}</style></defs>"
    markup = inline_svg(svg(inside), prefix="f", label="")
    assert "http" not in markup and "color" not in markup


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<foreignObject/>",
        '<a href="http://example.com"/>',
        '<g onload="alert(1)"/>',
        '<g ONCLICK="alert(1)"/>',
        '<use href="http://example.com/x.svg#a"/>',
        '<image href="http://example.com/x.png"/>',
        '<image href="data:text/html;base64,PHNjcmlwdD4="/>',
        '<path style="fill: url(http://example.com/x)"/>',
        '<path style="fill: url( //example.com/x)"/>',
        '<set attributeName="href" to="javascript:alert(1)"/>',
    ],
)
def test_whatever_is_no_drawing_is_refused(inside):
    with pytest.raises(ValueError, match="Was the file changed"):
        inline_svg(svg(inside), prefix="f", label="")


@pytest.mark.parametrize("content", [b"", b"<html/>", b"<svg", b"\x89PNG", svg("")[:-3]])
def test_what_is_no_svg_is_refused(content):
    with pytest.raises(ValueError, match="the figure f is"):
        inline_svg(content, prefix="f", label="")
