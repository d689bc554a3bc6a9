"""The page as a reader gets it: opened from a file, offline, on a phone and on a desk.

Screenshots go to the test's temporary folder, or to the one that ADTOWER_SCREENSHOTS names.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page and what it did while it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def open_page(browser, file: Path, *, size: str = "desktop", scheme: str = "light") -> Opened:
    width, height = SIZES[size]
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": height}, color_scheme=scheme
    )
    opened = Opened(context.new_page())
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on(
        "console",
        lambda message: (
            opened.errors.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    opened.page.goto(file.as_uri())
    return opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_opens_quietly_and_fits(browser, whole_run, tmp_path, size, scheme):
    opened = open_page(browser, whole_run / "report.html", size=size, scheme=scheme)
    assert opened.requests == [(whole_run / "report.html").as_uri()]
    assert opened.errors == []
    width = SIZES[size][0]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    folder = Path(os.environ.get("ADTOWER_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    image = opened.page.screenshot(path=folder / f"report-{size}-{scheme}.png", full_page=True)
    pixels = np.asarray(Image.open(BytesIO(image)).convert("L"))
    assert pixels.shape[1] == width and pixels.shape[0] > 2000
    # Most of a page is paper: nearly white in the light, nearly black in the dark.
    assert np.median(pixels) > 240 if scheme == "light" else np.median(pixels) < 40
    opened.page.context.close()


def test_what_is_wide_scrolls_within_its_box(browser, whole_run):
    opened = open_page(browser, whole_run / "report.html", size="phone")
    wide = opened.page.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".filter(box => box.scrollWidth > box.clientWidth).length"
    )
    assert wide >= 5
    free = opened.page.evaluate(
        "[...document.querySelectorAll('table, figure svg')]"
        ".filter(wide => !wide.closest('.scroll')).length"
    )
    assert free == 0
    opened.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_paper(browser, whole_run, scheme):
    opened = open_page(browser, whole_run / "report.html", scheme=scheme)
    poor = opened.page.evaluate(POOR_CONTRAST)
    # 4.5 is what WCAG 2.1 asks of text of usual size (success criterion 1.4.3, level AA).
    assert poor == []
    opened.page.context.close()


def test_no_two_labels_of_a_figure_lie_on_each_other(browser, whole_run):
    opened = open_page(browser, whole_run / "report.html")
    assert opened.page.evaluate(OVERLAPS) == []
    opened.page.context.close()


def test_a_page_of_nothing_opens_as_well(browser, tmp_path):
    from experiments.report import render_report
    from experiments.report_content import ReportContent

    file = tmp_path / "empty.html"
    file.write_text(render_report(ReportContent()), encoding="utf-8")
    opened = open_page(browser, file, size="phone")
    assert opened.requests == [file.as_uri()] and opened.errors == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]
    opened.page.context.close()


def test_it_prints_in_ink_on_white(browser, whole_run):
    opened = open_page(browser, whole_run / "report.html", scheme="dark")
    opened.page.emulate_media(media="print")
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(254, 254, 254)"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert opened.page.pdf(format="A4")[:5] == b"%PDF-"
    opened.page.context.close()


LUMINANCE = """
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => v / 255)
      .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
"""

POOR_CONTRAST = f"""() => {{ {LUMINANCE}
  const paperOf = e => {{ for (; e; e = e.parentElement) {{
      const c = getComputedStyle(e).backgroundColor, p = parse(c);
      if (p.length === 3 || p[3] > 0) return c; }} return 'rgb(255, 255, 255)'; }};
  const out = [];
  for (const e of document.querySelectorAll('main *')) {{
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
    const a = light(svg ? style.fill : style.color), b = light(paperOf(e));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) out.push(e.textContent.trim().slice(0, 40) + ' ' + contrast.toFixed(2));
  }}
  return out; }}"""

OVERLAPS = """() => {
  const out = [];
  for (const svg of document.querySelectorAll('figure svg')) {
    const box = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim())
      .map(t => [t.textContent.trim(), t.getBoundingClientRect()]);
    for (let i = 0; i < box.length; i++) for (let j = 0; j < i; j++) {
      const [a, r] = box[i], [b, s] = box[j];
      const wide = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const high = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (wide > 2 && high > 4) out.push(`${svg.getAttribute('aria-label')}: ${a} | ${b}`);
    }
  }
  return out; }"""
