"""The sizes of a trained click network, read from the settings and weights that were stored.

Widths come from the weights themselves; the settings say only what the weights cannot (which
parts are there, which feature owns which table). So what is drawn is what was trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ranking.checkpoint import read_verified
from ranking.contract import InputSignature
from ranking.tower_config import TowerConfig
from ranking.vector_features import vector_widths

Shapes = Mapping[str, Sequence[int]]

_TABLE = re.compile(r"production\.tables\.table\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stack of layers: what goes in, what each layer gives, what it learned."""

    widths: tuple[int, ...]
    """Width of the input, then of each layer's output."""
    parameters: int
    """Learned numbers."""


@dataclass(frozen=True, kw_only=True)
class IdTable:
    """One table of id embeddings."""

    feature: str
    rows: int
    """Values of the feature, out-of-vocabulary among them."""
    width: int


@dataclass(frozen=True, kw_only=True)
class VectorPart:
    """The features made of the given vectors."""

    given: int
    """Width of the product, query and history vectors."""
    projected: int
    derived: bool
    """Whether the history and the cosines are among the features."""
    presence: bool
    """Whether the masks of missing vectors are."""
    crossed: int
    """Width of the projected vectors and their products."""
    plain: int
    """Width of cosines and masks, which also go straight to the head."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A click network as it was trained."""

    tables: tuple[IdTable, ...]
    dense: tuple[str, ...]
    """Names of the dense columns."""
    crosses: Part
    """DCN-v2; its widths are all the width of the production tower's input."""
    cross_rank: int | None
    """None where the cross matrices are full."""
    mlp: Part
    vectors: VectorPart | None
    """None for a model without an embedding tower."""
    tower: Part | None
    """The embedding tower's layers; None without vectors, or where they feed the other tower."""
    head: Part
    logit: Part
    beside: dict[str, int]
    """Other learned parts by name, with their parameters: attention, position, purchase, gate."""

    @property
    def parameters(self) -> int:
        """All stored numbers, the tables of ids among them."""
        parts = [self.crosses, self.mlp, self.vectors, self.tower, self.head, self.logit]
        return (
            sum(table.rows * table.width for table in self.tables)
            + sum(part.parameters for part in parts if part is not None)
            + sum(self.beside.values())
        )


def read_model_shape(folder: Path | str) -> ModelShape:
    """Read the sizes of a click network that ``TowerRanker.save_`` wrote.

    Args:
        folder: Holds ``config.json`` and ``weights.safetensors``.

    Raises:
        ValueError: If it holds no tower, a file is missing or changed, or the weights do not fit
            the settings.
    """
    folder = Path(folder)
    fields: dict[str, Any] = json.loads(read_verified(folder, "config.json"))
    if fields.get("kind") != "tower":
        raise ValueError(f"{folder} holds a {fields.get('kind')!r} model; only towers are drawn")
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing; was the folder copied whole?")
    # Only the header is read: tables of ids may be larger than what a report should load.
    with safe_open(weights, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return model_shape(
        TowerConfig(**fields["config"]), InputSignature.from_json(fields["signature"]), shapes
    )


def model_shape(config: TowerConfig, signature: InputSignature, shapes: Shapes) -> ModelShape:
    """Put the sizes of a network together.

    Args:
        config: Its settings.
        signature: Its features.
        shapes: Shape of each stored weight, by name.

    Raises:
        ValueError: If there are not as many tables of ids as the settings name.
    """
    names = [*signature.sparse_names]
    names += [f"semantic id, level {level + 1}" for level in range(config.semantic_levels)]
    found = {int(m[1]): shapes[key] for key in shapes if (m := _TABLE.fullmatch(key))}
    if len(found) != len(names):
        raise ValueError(
            f"the weights hold {len(found)} tables of ids and the settings name {len(names)} "
            f"({', '.join(names)}); are they of one model, of this version of adtower?"
        )
    crosses = _layers(shapes, "production.cross.layers.")
    mlp = _layers(shapes, "production.mlp.")
    logit = _layers(shapes, "logit.")
    embedded = sum(found[i][1] for i in found)
    width = (crosses or mlp)[0][1] if crosses or mlp else embedded + len(signature.dense_names)
    return ModelShape(
        tables=tuple(
            IdTable(feature=name, rows=found[i][0], width=found[i][1])
            for i, name in enumerate(names)
        ),
        dense=tuple(signature.dense_names),
        crosses=Part(
            widths=(width,) * (config.cross_layers + 1),
            parameters=_count(shapes, "production.cross."),
        ),
        cross_rank=config.cross_rank,
        mlp=_part(shapes, "production.mlp.", width),
        vectors=_vectors(config, signature, shapes),
        tower=_part(shapes, "tower.", 0) if _layers(shapes, "tower.") else None,
        head=_part(shapes, "head.", logit[0][1]),
        logit=_part(shapes, "logit.", 0),
        beside={
            name: count
            for name, prefix in (
                ("attention", "attention."),
                ("frequency gate", "production.gate."),
                ("position tower", "position."),
                ("purchase tower", "purchase."),
            )
            if (count := _count(shapes, prefix))
        },
    )


def _vectors(config: TowerConfig, signature: InputSignature, shapes: Shapes) -> VectorPart | None:
    if not config.use_vectors:
        return None
    projected, given = shapes["vectors.project.weight"]
    assert given == signature.vectors_dim, "the projection reads the vectors that are given"
    crossed, plain = vector_widths(projected, derived=config.derived, presence=config.presence)
    return VectorPart(
        given=given,
        projected=projected,
        derived=config.derived,
        presence=config.presence,
        crossed=crossed,
        plain=plain,
        parameters=_count(shapes, "vectors."),
    )


def _part(shapes: Shapes, prefix: str, width: int) -> Part:
    layers = _layers(shapes, prefix)
    widths = (layers[0][1], *(out for out, _ in layers)) if layers else (width,)
    return Part(widths=widths, parameters=_count(shapes, prefix))


def _layers(shapes: Shapes, prefix: str) -> list[tuple[int, int]]:
    """(out, in) of each matrix under a prefix, in the order of the layers."""
    keys = [key for key in shapes if key.startswith(prefix) and len(shapes[key]) == 2]
    keys.sort(key=lambda key: [int(n) for n in re.findall(r"\d+", key)])
    return [(shapes[key][0], shapes[key][1]) for key in keys]


def _count(shapes: Shapes, prefix: str) -> int:
    return sum(prod(shape) for key, shape in shapes.items() if key.startswith(prefix))
