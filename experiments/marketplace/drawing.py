"""Product images: a visual code in shapes, colours, badges and patterns, drawn with disorder.

The pack's silhouette is its form, the emblem on its label the product type, a patterned band the
flavour, marks over the label the preparation, seals beside it the diet claims. Place, size,
tilt, pack colour, light and noise are drawn afresh for each image, so no pixel has a fixed meaning.

Coordinates inside the pack run from -1 to 1 with y downward.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from experiments.marketplace import grocery

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

# Drawn at this multiple of the final size and averaged down, so that edges are smooth.
OVERSAMPLING = 2

DEPARTMENT_COLOURS: tuple[Colour, ...] = (
    (40, 90, 200),
    (150, 95, 40),
    (0, 160, 170),
    (90, 55, 30),
    (215, 150, 20),
    (230, 90, 30),
    (225, 70, 150),
    (20, 50, 110),
    (180, 35, 45),
    (45, 140, 50),
    (120, 130, 30),
    (115, 50, 150),
)
EMBLEMS = (
    "disc",
    "square",
    "triangle",
    "diamond",
    "star",
    "cross",
    "ring",
    "crescent",
    "drop",
    "fish",
    "leaf",
    "bars",
)
FLAVOUR_BANDS: dict[str, tuple[Colour, str]] = {
    "strawberry": ((225, 40, 70), "dots"),
    "lemon": ((245, 225, 40), "stripes"),
    "chocolate": ((85, 45, 20), "checks"),
    "vanilla": ((250, 235, 180), "waves"),
    "garlic": ((205, 185, 215), "crosses"),
    "chilli": ((240, 90, 10), "zigzag"),
    "honey": ((225, 160, 20), "checks"),
}


def draw_product(
    type_index: int, attributes: Sequence[str], pixels: int, rng: np.random.Generator
) -> bytes:
    """Draw one product and return it as PNG.

    Args:
        type_index: Row of the product type in ``grocery.TYPE_NAMES``; its emblem.
        attributes: The attributes to show, names of ``grocery.ATTRIBUTES``.
        pixels: Side of the image.
        rng: Draws everything that means nothing.

    Returns:
        The bytes of a PNG file, RGB, ``pixels`` square.
    """
    side = pixels * OVERSAMPLING
    canvas = _background(side, rng)
    canvas.alpha_composite(_pack_layer(side, type_index, attributes, rng))
    _seals(canvas, [a for a in attributes if a in grocery.DIETS], rng)
    small = canvas.convert("RGB").resize((pixels, pixels), Image.Resampling.BOX)
    pixel_XYC = np.asarray(small, dtype=np.float32)
    pixel_XYC = pixel_XYC * rng.uniform(0.85, 1.12) + rng.normal(0, 6, (1, 1, 3))
    pixel_XYC = pixel_XYC + rng.normal(0, 5, pixel_XYC.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixel_XYC, 0, 255).astype(np.uint8)).save(
        file, format="PNG", compress_level=1
    )
    return file.getvalue()


def draw_catalogue(
    type_P: NDArray[np.int64], in_image_PA: NDArray[np.bool_], pixels: int, seed: int
) -> list[bytes]:
    """Draw every product; each image depends on ``seed`` and its own row alone."""
    return [
        draw_product(
            int(kind),
            [grocery.ATTRIBUTES[a] for a in np.flatnonzero(in_image_PA[row])],
            pixels,
            np.random.default_rng([seed, 3, row]),
        )
        for row, kind in enumerate(type_P)
    ]


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """A plain wall and a shelf, of any soft colour."""
    wall = rng.integers(170, 250, 3)
    canvas = Image.new("RGBA", (side, side), (*wall.tolist(), 255))
    shelf = np.clip(wall - rng.integers(10, 45), 0, 255)
    edge = int(side * rng.uniform(0.72, 0.9))
    ImageDraw.Draw(canvas).rectangle((0, edge, side, side), fill=(*shelf.tolist(), 255))
    return canvas


def _pack_layer(
    side: int, type_index: int, attributes: Sequence[str], rng: np.random.Generator
) -> Image.Image:
    """The pack with its label, tilted, on a transparent layer."""
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    scale = side * rng.uniform(0.36, 0.43)
    centre = (side * rng.uniform(0.42, 0.58), side * rng.uniform(0.44, 0.54))
    pen = _Pen(ImageDraw.Draw(layer), centre, scale)
    body: Colour = tuple(int(c) for c in rng.integers(90, 240, 3))  # type: ignore[assignment]
    pack = next((a for a in attributes if a in grocery.PACKS), "box")
    _draw_pack(pen, pack, body)
    pen.polygon([(-0.52, -0.38), (0.52, -0.38), (0.52, 0.38), (-0.52, 0.38)], (248, 246, 240))
    _draw_emblem(pen, type_index, rng)
    for attribute in attributes:
        if attribute in FLAVOUR_BANDS:
            _draw_band(pen, *FLAVOUR_BANDS[attribute], rng)
        elif attribute in grocery.PREPARATIONS:
            _draw_preparation(pen, attribute, rng)
    return layer.rotate(rng.normal(0, 7), resample=Image.Resampling.BILINEAR, center=centre)


class _Pen:
    """Draws in pack coordinates."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, centre: tuple[float, float], scale: float
    ) -> None:
        self.draw, self.centre, self.scale = draw, centre, scale

    def _at(self, points: Points) -> Points:
        (cx, cy), s = self.centre, self.scale
        return [(cx + s * x, cy + s * y) for x, y in points]

    def polygon(self, points: Points, fill: Colour) -> None:
        self.draw.polygon(self._at(points), fill=fill)

    def ellipse(self, box: tuple[float, float, float, float], fill: Colour) -> None:
        (x0, y0), (x1, y1) = self._at([(box[0], box[1]), (box[2], box[3])])
        self.draw.ellipse((x0, y0, x1, y1), fill=fill)

    def line(self, points: Points, fill: Colour, width: float) -> None:
        self.draw.line(self._at(points), fill=fill, width=max(1, round(width * self.scale)))


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


def _draw_pack(pen: _Pen, pack: str, body: Colour) -> None:
    """The silhouette that tells the pack form."""
    dark, light = _shade(body, 0.6), _shade(body, 1.25)
    if pack == "can":
        pen.ellipse((-0.62, 0.68, 0.62, 1.0), dark)
        pen.polygon([(-0.62, -0.8), (0.62, -0.8), (0.62, 0.84), (-0.62, 0.84)], body)
        pen.ellipse((-0.62, -0.98, 0.62, -0.62), (190, 190, 195))
        pen.ellipse((-0.48, -0.93, 0.48, -0.67), (150, 150, 155))
    elif pack == "bottle":
        neck = [(-0.16, -1.15), (0.16, -1.15), (0.18, -0.75), (0.58, -0.4), (0.58, 1.0)]
        pen.polygon([*neck, (-0.58, 1.0), (-0.58, -0.4), (-0.18, -0.75)], body)
        pen.polygon([(-0.2, -1.2), (0.2, -1.2), (0.2, -1.0), (-0.2, -1.0)], dark)
    elif pack == "jar":
        pen.ellipse((-0.8, -0.85, 0.8, 1.0), body)
        pen.polygon([(-0.75, -0.4), (0.75, -0.4), (0.75, 0.6), (-0.75, 0.6)], body)
        pen.polygon([(-0.6, -1.05), (0.6, -1.05), (0.6, -0.72), (-0.6, -0.72)], dark)
    elif pack == "box":
        pen.polygon([(-0.72, -0.85), (0.6, -0.85), (0.6, 1.0), (-0.72, 1.0)], body)
        pen.polygon([(0.6, -0.85), (0.92, -1.08), (0.92, 0.75), (0.6, 1.0)], dark)
        pen.polygon([(-0.72, -0.85), (-0.4, -1.08), (0.92, -1.08), (0.6, -0.85)], light)
    elif pack == "bag":
        top = [(-0.75 + 0.15 * i, -1.05 if i % 2 else -0.9) for i in range(11)]
        low = [(0.75 - 0.15 * i, 1.05 if i % 2 else 0.9) for i in range(11)]
        pen.polygon([*top, (0.62, 0.0), *low, (-0.62, 0.0)], body)
        pen.line([(-0.72, -0.8), (0.72, -0.8)], dark, 0.06)
        pen.line([(-0.72, 0.8), (0.72, 0.8)], dark, 0.06)
    else:
        pen.polygon([(-0.95, -0.55), (0.95, -0.55), (0.62, 0.95), (-0.62, 0.95)], body)
        pen.ellipse((-1.02, -0.85, 1.02, -0.4), light)
        pen.ellipse((-0.85, -0.78, 0.85, -0.48), dark)


def _draw_emblem(pen: _Pen, type_index: int, rng: np.random.Generator) -> None:
    """A shape in the department's colour: together they tell the product type."""
    department = grocery.TYPE_DEPARTMENT[type_index]
    within = type_index - grocery.TYPE_DEPARTMENT.index(department)
    emblem = EMBLEMS[(within * 2 + department * 3) % len(EMBLEMS)]
    jitter = rng.normal(0, 8, 3)
    r, g, b = (
        int(np.clip(c + j, 0, 255))
        for c, j in zip(DEPARTMENT_COLOURS[department], jitter, strict=True)
    )
    s = rng.uniform(0.3, 0.38)
    turn = rng.normal(0, 0.12)
    ink: Colour = (r, g, b)

    def turned(points: Points) -> Points:
        c, d = math.cos(turn), math.sin(turn)
        return [(s * (x * c - y * d), s * (x * d + y * c) - 0.05) for x, y in points]

    def disc(x: float, y: float, radius: float, fill: Colour) -> None:
        pen.polygon(turned([_on_circle(x, y, radius, k / 16) for k in range(16)]), fill)

    paper: Colour = (248, 246, 240)
    if emblem == "disc":
        disc(0, 0, 1, ink)
    elif emblem == "square":
        pen.polygon(turned([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]), ink)
    elif emblem == "triangle":
        pen.polygon(turned([(0, -1), (1, 0.8), (-1, 0.8)]), ink)
    elif emblem == "diamond":
        pen.polygon(turned([(0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)]), ink)
    elif emblem == "star":
        tips = [_on_circle(0, 0, 1.1 if k % 2 else 0.45, k / 10) for k in range(10)]
        pen.polygon(turned(tips), ink)
    elif emblem == "cross":
        pen.polygon(turned([(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)]), ink)
        pen.polygon(turned([(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)]), ink)
    elif emblem == "ring":
        disc(0, 0, 1, ink)
        disc(0, 0, 0.55, paper)
    elif emblem == "crescent":
        disc(0, 0, 1, ink)
        disc(0.5, -0.2, 0.8, paper)
    elif emblem == "drop":
        disc(0, 0.35, 0.65, ink)
        pen.polygon(turned([(0, -1.1), (0.6, 0.2), (-0.6, 0.2)]), ink)
    elif emblem == "fish":
        pen.polygon(turned([(-1, 0), (-0.3, -0.6), (0.5, 0), (-0.3, 0.6)]), ink)
        pen.polygon(turned([(0.3, 0), (1, -0.6), (1, 0.6)]), ink)
    elif emblem == "leaf":
        pen.polygon(turned([(-0.9, 0.9), (-0.7, -0.4), (0.9, -0.9), (0.5, 0.6)]), ink)
        pen.line(turned([(-0.9, 0.9), (0.5, -0.5)]), paper, 0.05)
    else:
        for x in (-0.75, 0, 0.75):
            pen.polygon(turned([(x - 0.22, -1), (x + 0.22, -1), (x + 0.22, 1), (x - 0.22, 1)]), ink)


def _on_circle(x: float, y: float, radius: float, part: float) -> tuple[float, float]:
    angle = 2 * math.pi * part
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


def _draw_band(pen: _Pen, colour: Colour, pattern: str, rng: np.random.Generator) -> None:
    """The band under the label: colour and pattern tell the flavour."""
    top, low = 0.42, 0.78
    phase = rng.uniform(0, 0.2)
    pen.polygon([(-0.56, top), (0.56, top), (0.56, low), (-0.56, low)], colour)
    ink = _shade(colour, 0.5) if sum(colour) > 330 else (250, 240, 230)
    middle = (top + low) / 2
    x_values = [-0.5 + phase + 0.24 * k for k in range(5) if -0.5 + phase + 0.24 * k < 0.48]
    for k, x in enumerate(x_values):
        if pattern == "dots":
            pen.ellipse((x - 0.07, middle - 0.07, x + 0.07, middle + 0.07), ink)
        elif pattern == "stripes":
            pen.line([(x, top), (x, low)], ink, 0.07)
        elif pattern == "checks":
            y = top if k % 2 else middle
            pen.polygon([(x, y), (x + 0.15, y), (x + 0.15, y + 0.18), (x, y + 0.18)], ink)
        elif pattern == "crosses":
            pen.line([(x - 0.07, middle - 0.08), (x + 0.07, middle + 0.08)], ink, 0.05)
            pen.line([(x + 0.07, middle - 0.08), (x - 0.07, middle + 0.08)], ink, 0.05)
    if pattern in ("zigzag", "waves"):
        step, height = (0.13, 0.13) if pattern == "zigzag" else (0.28, 0.05)
        points = [
            (-0.54 + step * k, middle + (height if k % 2 else -height))
            for k in range(int(1.08 / step) + 1)
        ]
        pen.line(points, ink, 0.07)


def _draw_preparation(pen: _Pen, preparation: str, rng: np.random.Generator) -> None:
    """Marks over the label and the pack."""
    x = rng.uniform(-0.12, 0.12)
    if preparation == "smoked":
        for k in (-0.35, 0.0, 0.35):
            points = [(x + k + (0.1 if i % 2 else -0.1), -0.45 - 0.14 * i) for i in range(5)]
            pen.line(points, (95, 95, 105), 0.09)
    elif preparation == "sliced":
        for k in (-0.3, 0.0, 0.3):
            pen.line([(x + k - 0.28, 0.36), (x + k + 0.28, -0.36)], (20, 20, 20), 0.06)
    elif preparation == "roasted":
        for k in (-0.42, 0.42):
            flame = [(k - 0.16, -0.4), (k - 0.08, -0.72), (k, -0.55), (k + 0.08, -0.78)]
            pen.polygon([*flame, (k + 0.16, -0.4)], (200, 60, 10))
    elif preparation == "frozen":
        for k in (-0.5, 0.5):
            for turn in (0.0, math.pi / 3, 2 * math.pi / 3):
                dx, dy = 0.24 * math.cos(turn), 0.24 * math.sin(turn)
                ends = [(k + x - dx, -0.52 - dy), (k + x + dx, -0.52 + dy)]
                pen.line(ends, (60, 170, 240), 0.07)
    elif preparation == "ground":
        for px, py in rng.uniform((-0.5, -0.36), (0.5, 0.36), (22, 2)):
            pen.ellipse((px - 0.04, py - 0.04, px + 0.04, py + 0.04), (60, 40, 30))


def _seals(canvas: Image.Image, claims: Sequence[str], rng: np.random.Generator) -> None:
    """Round seals for the diet claims, each in a corner of its own."""
    corners = rng.permutation(4)
    draw = ImageDraw.Draw(canvas)
    for claim, corner in zip(claims, corners, strict=False):
        radius = canvas.width * rng.uniform(0.105, 0.13)
        low, high = 0.14 * canvas.width, 0.86 * canvas.width
        shift = rng.uniform(-0.02, 0.02, 2) * canvas.width
        centre = ((high, low)[corner % 2] + shift[0], (high, low)[corner // 2] + shift[1])
        _draw_seal(_Pen(draw, centre, radius), claim)


def _draw_seal(pen: _Pen, claim: str) -> None:
    disc = (-1.0, -1.0, 1.0, 1.0)
    if claim == "organic":
        pen.ellipse(disc, (30, 130, 50))
        pen.polygon([(-0.6, 0.6), (-0.4, -0.3), (0.6, -0.6), (0.3, 0.4)], (230, 250, 220))
    elif claim == "gluten free":
        pen.ellipse(disc, (240, 200, 40))
        pen.line([(-0.6, 0.6), (0.6, -0.6)], (150, 20, 20), 0.3)
    elif claim == "vegan":
        pen.ellipse(disc, (240, 250, 240))
        pen.line([(-0.55, -0.5), (0, 0.6), (0.55, -0.5)], (20, 150, 60), 0.3)
    elif claim == "sugar free":
        pen.ellipse(disc, (70, 40, 160))
        pen.polygon([(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)], (250, 250, 250))
    elif claim == "low salt":
        pen.ellipse(disc, (60, 60, 65))
        for x, y in ((-0.4, -0.3), (0.4, -0.3), (0, 0.1), (-0.35, 0.5), (0.35, 0.5)):
            pen.ellipse((x - 0.17, y - 0.17, x + 0.17, y + 0.17), (250, 250, 250))
    else:
        pen.ellipse(disc, (120, 200, 245))
        pen.polygon([(0, -0.75), (0.5, 0.3), (0, 0.7), (-0.5, 0.3)], (255, 255, 255))
