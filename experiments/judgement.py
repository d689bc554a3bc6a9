"""The record of judged vectors: every figure with its interval, as JSON, flat and as tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from embeddings.query_bootstrap import Estimate

COMPARED = (
    *("auc_2v0", "auc_2v1", "auc_1v0", "true_auc_2v1", "ks_2v1", "overlap_2v1"),
    *("recall@10", "ndcg@10", "map", "mrr"),
)
"""Figures whose difference to off the shelf the tables show; JSON has all of them."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure; what could not be computed is None."""

    value: float
    low: float | None = None
    high: float | None = None
    delta: float | None = None
    """Difference to the frozen off-the-shelf vectors, over the same draws of queries."""
    delta_low: float | None = None
    delta_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was found of vectors, and of what stands beside them."""

    subject: str
    settings: dict[str, Any]
    counts: dict[str, int]
    """Pairs, queries and products that figures rest on."""
    notes: tuple[str, ...]
    """Samples that were drawn, and what was left out."""
    measures: dict[str, dict[str, Measure]]
    """By name of the vectors, then by name of the figure."""
    files: tuple[str, ...] = field(default=())
    """Figures that were drawn."""

    def to_json(self) -> dict[str, Any]:
        """Everything, without what is None."""
        content = asdict(self)
        content["measures"] = {
            name: {
                key: {part: number for part, number in asdict(one).items() if number is not None}
                for key, one in measures.items()
            }
            for name, measures in self.measures.items()
        }
        return content

    def to_metrics(self) -> dict[str, float]:
        """Flat: ``NAME.figure``, ``.low`` and ``.high``, ``.delta``, ``.delta.low``, and so on."""
        flat = {f"counts.{name}": float(count) for name, count in self.counts.items()}
        for name, measures in self.measures.items():
            for key, one in measures.items():
                for part, number in asdict(one).items():
                    if number is not None:
                        end = "" if part == "value" else f".{part.replace('_', '.')}"
                        flat[f"{name}.{key}{end}"] = number
        return flat

    def to_markdown(self) -> str:
        """Tables, a row for each kind of vectors, with counts and notes."""
        confidence = self.settings["confidence"]
        parts = [
            f"# {self.subject.replace('_', ' ')}, judged without clicks",
            f"In brackets: {confidence:.0%} intervals over {self.settings['draws']} draws of the "
            "queries. What nobody judged counts as not relevant in retrieval.",
            *(f"- {name.replace('_', ' ')}: {count:,}" for name, count in self.counts.items()),
        ]
        for title, keys in self._sections():
            table = self._table(keys, shown)
            if table:
                parts += [f"## {title}", table]
        table = self._table([key for key in COMPARED if key in self._keys()], shown_delta)
        if table:
            parts += ["## Difference to off the shelf, paired over draws of the queries", table]
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes)]
        parts += [f"![{file}]({file})" for file in self.files]
        return _joined(parts)

    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for one in self.measures.values() for key in one))

    def _sections(self) -> list[tuple[str, list[str]]]:
        starts = {
            "Relevance: AUC between classes, held-out queries": ("auc_",),
            "Relevance by the true classes of the generated world": ("true_auc_",),
            "Separation of the classes": ("ks_", "overlap_"),
            "Retrieval, held-out queries": ("recall@", "ndcg@", "ndcg_judged@", "map", "mrr"),
            "Retrieval, unseen queries and unseen products": ("unseen_queries.unseen_products.",),
            "Retrieval, unseen queries and seen products": ("unseen_queries.seen_products.",),
            "Retrieval, seen queries and unseen products": ("seen_queries.unseen_products.",),
            "Retrieval, seen queries and seen products": ("seen_queries.seen_products.",),
            "Categories read off product vectors (macro-F1)": ("category.",),
            "Geometry": ("geometry.",),
        }
        keys = self._keys()
        return [
            (title, [k for k in keys if k.startswith(start)]) for title, start in starts.items()
        ]

    def _table(self, keys: Sequence[str], cell: Callable[[Measure | None], str]) -> str:
        """A markdown table of some figures, a row for each kind of vectors that has one."""
        if not keys:
            return ""
        lines = [
            "| vectors | " + " | ".join(key.rpartition(".")[2] for key in keys) + " |",
            "|---|" + "---|" * len(keys),
        ]
        for name, measures in self.measures.items():
            if any(cell(measures.get(key)) for key in keys):
                cells = " | ".join(cell(measures.get(key)) for key in keys)
                lines.append(f"| {name.replace('_', ' ')} | {cells} |")
        return "\n".join(lines)


def measures_of(
    estimates: Mapping[str, Mapping[str, Estimate]], baseline: str, confidence: float
) -> dict[str, dict[str, Measure]]:
    """Turn draws into intervals, and those of the baseline into paired differences.

    Args:
        estimates: By name of the vectors, then by figure; of one figure all over the same draws.
        baseline: The name that the others are compared with.
        confidence: Of the intervals.

    Returns:
        The same, without figures that are not finite.
    """
    measures: dict[str, dict[str, Measure]] = {}
    for name, by_key in estimates.items():
        measures[name] = {}
        for key, estimate in by_key.items():
            if not math.isfinite(estimate.value):
                continue
            low, high = estimate.interval(confidence) or (None, None)
            base = estimates[baseline].get(key)
            difference = None if base is None or name == baseline else estimate.minus(base)
            if difference is None or not math.isfinite(difference.value):
                measures[name][key] = Measure(value=estimate.value, low=low, high=high)
                continue
            delta_low, delta_high = difference.interval(confidence) or (None, None)
            measures[name][key] = Measure(
                value=estimate.value,
                low=low,
                high=high,
                delta=difference.value,
                delta_low=delta_low,
                delta_high=delta_high,
            )
    return measures


def shown(measure: Measure | None) -> str:
    """A figure as a table shows it, with its interval where it has one."""
    if measure is None:
        return ""
    if measure.low is None or measure.high is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"


def shown_delta(measure: Measure | None) -> str:
    """A difference as a table shows it; empty where there is none."""
    if measure is None or measure.delta is None:
        return ""
    if measure.delta_low is None or measure.delta_high is None:
        return f"{measure.delta:+.3f}"
    return f"{measure.delta:+.3f} [{measure.delta_low:+.3f}, {measure.delta_high:+.3f}]"


def _joined(parts: Sequence[str]) -> str:
    """Paragraphs apart, lines of one list together."""
    text = parts[0]
    for before, after in itertools.pairwise(parts):
        together = before.startswith("- ") and after.startswith("- ")
        text += ("\n" if together else "\n\n") + after
    return text + "\n"
