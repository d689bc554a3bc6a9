"""Figure 3: the click network as it was trained, every table and layer with its size.

Drawn from top to bottom, as a row of impressions goes through it: what is known of an impression,
the two towers, the head over both, the logit.
"""

from __future__ import annotations

from experiments.figure_style import AMBER, BLUE, GREEN, PURPLE, VERMILLION
from experiments.model_shape import ModelShape, Part, VectorPart
from experiments.svg_boxes import Box, BoxDrawing

WIDTH, NARROW = 900.0, 456.0
"""With an embedding tower or other parts beside the head, and without."""
MOST_TABLES = 14
"""Larger sets of sparse features are summed up in one line."""
_TOP = 8.0
_GAP = 26.0
_LEFT, _LEFT_WIDTH = 8.0, 440.0
_RIGHT, _RIGHT_WIDTH = 462.0, 430.0
_INSIDE = 14.0


def figure_3(shape: ModelShape) -> bytes:
    """Draw a trained click network.

    Args:
        shape: Its sizes, from ``read_model_shape``.

    Returns:
        An SVG in the colours of every other figure.
    """
    at_the_head = {"position tower", "purchase tower"} & set(shape.beside)
    drawing = BoxDrawing(WIDTH if shape.vectors is not None or at_the_head else NARROW)
    known = _production_inputs(drawing, shape)
    features = None if shape.vectors is None else _vector_features(drawing, shape.vectors)
    level = max([box.bottom for box in known] + ([] if features is None else [features.bottom]))
    production = _production_layers(drawing, shape, known, level + _GAP)
    joined = list(production)
    if features is not None and shape.tower is not None:
        joined.append(_embedding_layers(drawing, shape, features, production[0].y))
    elif features is not None:
        entry = production[0]
        drawing.arrow(
            (features.middle, features.bottom), (features.middle, entry.y + 14),
            (entry.right, entry.y + 14), color=GREEN,
        )  # fmt: skip
    bottom = max(box.bottom for box in joined)
    drawing.frame(_LEFT, _TOP, _LEFT_WIDTH, bottom - _TOP + 14, "Production tower", BLUE)
    if features is not None:
        end = bottom if shape.tower is not None else features.bottom
        title = "Embedding tower" if shape.tower is not None else "Vector features"
        drawing.frame(_RIGHT, _TOP, _RIGHT_WIDTH, end - _TOP + 14, title, GREEN)
    _head(
        drawing, shape, joined[1:], bottom + 14 + _GAP, 0.0 if features is None else features.bottom
    )
    return drawing.to_svg()


def _production_inputs(drawing: BoxDrawing, shape: ModelShape) -> list[Box]:
    lines: list[str | tuple[str, str]] = [
        (table.feature, f"{table.rows:,} × {table.width}") for table in shape.tables[:MOST_TABLES]
    ]
    if rest := shape.tables[MOST_TABLES:]:
        lines.append((f"and {len(rest)} more", f"{sum(table.rows for table in rest):,} rows"))
    numbers = sum(table.rows * table.width for table in shape.tables)
    inner = _LEFT_WIDTH - 2 * _INSIDE
    narrow = 132.0
    sparse = drawing.box(
        _LEFT + _INSIDE,
        _TOP + 34,
        inner - narrow - 12,
        "Sparse features: rows × width",
        lines or ["none"],
        color=BLUE,
        note=_learned(numbers),
    )
    columns: list[str] = [*shape.dense[:6]]
    if len(shape.dense) > 6:
        columns.append(f"and {len(shape.dense) - 6} more")
    dense = drawing.box(
        sparse.right + 12,
        _TOP + 34,
        narrow,
        f"Dense: {len(shape.dense)}",
        columns,
        color=BLUE,
    )
    boxes = [sparse, dense]
    for name in ("attention", "frequency gate"):
        if name in shape.beside:
            words = {"attention": "Attention", "frequency gate": "Frequency gate"}[name]
            boxes.append(
                drawing.box(
                    dense.x,
                    boxes[-1].bottom + 10,
                    narrow,
                    words,
                    color=AMBER,
                    note=_learned(shape.beside[name]),
                )
            )
    return boxes


def _production_layers(
    drawing: BoxDrawing, shape: ModelShape, known: list[Box], y: float
) -> tuple[Box, Box, Box]:
    """The input, the crosses and the MLP beside them."""
    inner = _LEFT_WIDTH - 2 * _INSIDE
    width = shape.crosses.widths[0]
    entry = drawing.box(_LEFT + _INSIDE, y, inner, f"concatenate: {width}", color=BLUE)
    for box in (known[0], known[-1]):
        drawing.arrow((box.middle, box.bottom), (box.middle, entry.y))
    layers = len(shape.crosses.widths) - 1
    rank = "full matrices" if shape.cross_rank is None else f"rank {shape.cross_rank}"
    half = (inner - 12) / 2
    crosses = drawing.box(
        entry.x,
        entry.bottom + _GAP,
        half,
        "DCN-v2 crosses",
        [f"{_layers(layers)}, {rank}" if layers else "none", f"{width} → {width}"],
        color=BLUE,
        note=_learned(shape.crosses.parameters),
    )
    mlp = drawing.box(
        crosses.right + 12,
        crosses.y,
        half,
        "MLP beside them",
        [f"{_layers(len(shape.mlp.widths) - 1)}, ReLU", _flow(shape.mlp)],
        color=BLUE,
        note=_learned(shape.mlp.parameters),
    )
    for box in (crosses, mlp):
        drawing.arrow((box.middle, entry.bottom), (box.middle, box.y))
    return entry, crosses, mlp


def _vector_features(drawing: BoxDrawing, vectors: VectorPart) -> Box:
    inner = _RIGHT_WIDTH - 2 * _INSIDE
    third = (inner - 24) / 3
    x = _RIGHT + _INSIDE
    given = ["product p", "query q", *(["history h"] if vectors.derived else [])]
    boxes = [
        drawing.box(
            x + i * (third + 12), _TOP + 34, third, name, [f"width {vectors.given}"], color=GREEN
        )
        for i, name in enumerate(given)
    ]
    project = drawing.box(
        x,
        boxes[0].bottom + _GAP,
        2 * third + 12,
        "one projection for all",
        [f"{vectors.given} → {vectors.projected}, scaled to unit variance"],
        color=GREEN,
        note=_learned(vectors.parameters),
    )
    for box in boxes[:2]:
        drawing.arrow((box.middle, box.bottom), (box.middle, project.y))
    lines: list[str | tuple[str, str]] = []
    names = "p, q, p∘q, h, p∘h" if vectors.derived else "p, q, p∘q"
    lines.append((f"projected: {names}", str(vectors.crossed)))
    if vectors.derived:
        history = boxes[2]
        close = drawing.box(
            history.x, project.y, third, "cosines", ["cos(p,q)", "cos(p,h)"], color=VERMILLION
        )
        drawing.arrow((history.middle, history.bottom), (history.middle, close.y))
        inside = (history.x + 16, project.right - 16)
        turn = history.bottom + _GAP / 2
        drawing.arrow(
            (inside[0], history.bottom),
            (inside[0], turn),
            (inside[1], turn),
            (inside[1], project.y),
        )
        drawing.arrow(
            (close.middle, close.bottom), (close.middle, project.bottom + _GAP), color=VERMILLION
        )
        lines.append(("cosines of the vectors as given", "2"))
    if vectors.presence:
        lines.append(("which of p, q, h are there", "3"))
    y = project.bottom + _GAP
    features = drawing.box(x, y, inner, "features of the vectors", lines, color=GREEN)
    drawing.arrow((project.middle, project.bottom), (project.middle, features.y))
    return features


def _embedding_layers(drawing: BoxDrawing, shape: ModelShape, features: Box, y: float) -> Box:
    """The embedding tower's layers, and what passes them by."""
    assert shape.vectors is not None and shape.tower is not None
    inner = _RIGHT_WIDTH - 2 * _INSIDE
    y += 39 + _GAP if y > features.bottom else 0
    tower = drawing.box(
        features.x,
        y,
        inner - 130,
        "FC layers of the embedding tower",
        [f"{_layers(len(shape.tower.widths) - 1)}, ReLU", _flow(shape.tower)],
        color=GREEN,
        note=_learned(shape.tower.parameters),
    )
    drawing.arrow((tower.middle, features.bottom), (tower.middle, tower.y))
    return tower


def _head(
    drawing: BoxDrawing, shape: ModelShape, joined: list[Box], y: float, features_end: float
) -> None:
    """The concatenation of the towers, the layers over it, and the logit."""
    crosses, mlp = shape.crosses.widths[-1], shape.mlp.widths[-1]
    sums = [f"{crosses} crosses", f"{mlp} MLP"]
    plain = 0
    if shape.tower is not None and shape.vectors is not None:
        plain = shape.vectors.plain
        sums += [f"{shape.tower.widths[-1]} embedding tower"]
        sums += [f"{plain} cosines and masks"] if plain else []
    x, wide = (_LEFT, _LEFT_WIDTH) if shape.tower is None else (_LEFT, WIDTH - 2 * _LEFT)
    joint = drawing.box(
        x, y, wide, f"concatenate: {shape.head.widths[0]}", [" + ".join(sums)], color=PURPLE
    )
    for box in joined:
        drawing.arrow((box.middle, box.bottom), (box.middle, joint.y))
    if plain:
        right, layers = _RIGHT + _RIGHT_WIDTH - _INSIDE - 60, joined[-1]
        drawing.arrow((right, features_end), (right, joint.y), color=VERMILLION)
        drawing.words(right - 8, layers.y + 30, "past the", anchor="end")
        drawing.words(right - 8, layers.y + 44, f"layers: {plain}", anchor="end")
    half, middle = 300.0, joint.middle
    last = joint
    if len(shape.head.widths) > 1:
        last = drawing.box(
            middle - half / 2,
            joint.bottom + _GAP,
            half,
            f"FC layers over both: {_flow(shape.head)}",
            color=PURPLE,
            note=_learned(shape.head.parameters),
        )
        drawing.arrow((last.middle, joint.bottom), (last.middle, last.y))
    logit = drawing.box(
        middle - half / 2,
        last.bottom + _GAP,
        half,
        f"logit of a click: {_flow(shape.logit)}",
        color=PURPLE,
        note=_learned(shape.logit.parameters),
    )
    drawing.arrow((logit.middle, last.bottom), (logit.middle, logit.y))
    if last is not joint:
        side, level = logit.x - 30, logit.y + logit.height / 2
        drawing.arrow((side, joint.bottom), (side, level), (logit.x, level))
    for i, name in enumerate(n for n in ("position tower", "purchase tower") if n in shape.beside):
        what = {"position tower": "while training", "purchase tower": "if clicked"}[name]
        extra = drawing.box(
            logit.right + 40,
            logit.y - 74 * i,
            150,
            name.capitalize(),
            [what],
            color=AMBER,
            note=_learned(shape.beside[name]),
        )
        if name == "position tower":
            drawing.arrow((extra.x, logit.y + 22), (logit.right, logit.y + 22), color=AMBER)
    drawing.words(
        middle,
        drawing.bottom + 22,
        f"{shape.parameters:,} numbers in all: tables of ids, layers, and the scale of the cosines",
        anchor="middle",
    )


def _flow(part: Part) -> str:
    return " → ".join(f"{width}" for width in part.widths)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _learned(count: int) -> str:
    return f"{count:,} parameters"
