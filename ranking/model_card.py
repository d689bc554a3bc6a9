"""The page a bundle carries for people: what the model is, how good it was, what it cannot do.

Shape letters: N impressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.examples import Examples
from ranking.bundle import BundleManifest
from ranking.quantise import Int8Gate
from ranking.scorecard import sliced_metrics

SLICE_MEASURES = ("impressions", "auc", "log_loss", "calibration_ratio")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What only the caller of an export knows."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """Of the training data: name, sizes, time ranges; JSON values, printed as they are nested."""
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Masks over the sample's rows, beside those that any sample has."""


def card_text(
    manifest: BundleManifest,
    sample: pl.DataFrame,
    examples: Examples,
    p_click_N: NDArray[np.float64],
    facts: CardFacts,
    gate: Int8Gate | None,
) -> str:
    """Return ``model_card.md``.

    Args:
        manifest: Of the bundle.
        sample: Raw impressions that the model was not trained on.
        examples: The same, as arrays.
        p_click_N: The bundle's scores of them, calibrated.
        facts: What the caller knows of the data.
        gate: What int8 tables cost; None where they are as trained.
    """
    signature = manifest.signature
    members = ", ".join(f"{m.name} (`{m.file}`)" for m in manifest.members)
    if len(manifest.members) > 1:
        plural = {"logit": "logits", "probability": "probabilities"}[manifest.average]
        members += f"; their {plural} are averaged"
    sparse = ", ".join(
        f"{name} ({size:,})"
        for name, size in zip(signature.sparse_names, signature.vocabulary_sizes, strict=True)
    )
    sections = {
        "Model": [
            f"Predicts P(click) of an impression. Members: {members}.",
            f"Sparse features (rows of each table): {sparse or 'none'}.",
            f"Dense columns: {', '.join(signature.dense_names) or 'none'}.",
            _vectors_line(manifest),
            *_gate_lines(gate),
        ],
        "Data": [*_nested(facts.data), *_sample_lines(sample)],
        "How good": _slice_table(examples, p_click_N, facts.slices),
        "Calibration": [_calibration_line(manifest)],
        "Limits": _LIMITS,
        "Written with": [f"{name} {number}" for name, number in sorted(manifest.versions.items())],
    }
    lines = [f"# {manifest.name}"]
    for title, body in sections.items():
        table = body and body[0].startswith("|")
        lines += ["", f"## {title}", "", *(body if table else [f"- {line}" for line in body])]
    return "\n".join(lines) + "\n"


_LIMITS = [
    "Scores are pCTR at the positions of the log it was trained on; position is no input, and the "
    "clicks follow what an earlier system chose to show.",
    "Ids that training did not show, products and queries without a vector, and users without "
    "purchases are scored by what is left; the slices above say how well.",
    "A null is a missing value. NaN, infinity, ids beyond a table and vectors of another encoder "
    "are refused.",
    "Catalogue, vocabularies and purchase histories are those of the export; they age.",
]


def _vectors_line(manifest: BundleManifest) -> str:
    signature = manifest.signature
    if manifest.vectors == "none":
        return "Uses no vectors."
    where = "in the bundle" if manifest.vectors == "inside" else "in a store the reader names"
    return (
        f"Vectors of {signature.vectors_dim} dimensions, {where}, "
        f"fingerprint `{signature.vectors_fingerprint}`."
    )


def _gate_lines(gate: Int8Gate | None) -> list[str]:
    if gate is None:
        return []
    return [
        f"Id tables are int8. On {gate.rows:,} labelled impressions AUC went from {gate.auc:.5f} "
        f"to {gate.auc_int8:.5f}, mean prediction over click rate from "
        f"{gate.calibration_ratio:.4f} to {gate.calibration_ratio_int8:.4f}."
    ]


def _nested(facts: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += _nested(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name}: {value}")
    return lines


def _sample_lines(sample: pl.DataFrame) -> list[str]:
    return [
        f"The figures below and the golden rows come from {len(sample):,} impressions, "
        f"{sample['time'].min()} to {sample['time'].max()}."
    ]


def _slice_table(
    examples: Examples, p_click_N: NDArray[np.float64], more: Mapping[str, NDArray[np.bool_]]
) -> list[str]:
    if examples.label_N is None:
        return ["The sample carries no labels, so nothing was measured."]
    slices = {
        "all": np.ones(len(examples), bool),
        "unknown_products": examples.product_N < 0,
        "unknown_queries": examples.query_N < 0,
        "no_history": ~(examples.history_NL >= 0).any(axis=1),
        **more,
    }
    measured = sliced_metrics(examples.label_N, p_click_N, slices)
    lines = [
        f"| slice | {' | '.join(SLICE_MEASURES)} |",
        f"|{'---|' * (len(SLICE_MEASURES) + 1)}",
    ]
    for name, mask_N in slices.items():
        if mask_N.any():
            cells = [_cell(measured.get(f"{name}.{key}")) for key in SLICE_MEASURES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _calibration_line(manifest: BundleManifest) -> str:
    if manifest.calibration is None:
        return "None was fitted; scores are the model's own probabilities."
    where = "inside the graph" if manifest.calibration_inside else "after the models"
    if manifest.calibration["kind"] == "platt":
        slope, intercept = manifest.calibration["slope"], manifest.calibration["intercept"]
        return f"Platt, {where}: sigmoid({slope:.4f} logit + {intercept:.4f})."
    if manifest.calibration["kind"] == "temperature":
        return f"Temperature, {where}: sigmoid(logit / {manifest.calibration['temperature']:.4f})."
    return f"Isotonic with {len(manifest.calibration['predicted'])} knots, {where}."


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
