"""What a run looked for as signs of a leak, and what it found, told whether found or not.

A leak makes every figure of a report too good. ``features.check`` refuses a dataset with a plain
one before anything is trained; the record says that it looked, and what it only warned of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from embeddings.relevance_split import split_relevance
from experiments.comparison import Comparison
from features.arrays import PARTS, FeatureArrays
from features.dataset import Dataset, Split
from features.leaks import (
    NEAR_PERFECT_AUC,
    leak_violations,
    near_perfect_features,
    statistics_that_saw_their_rows,
)
from features.violation import Violation

LEAK_CHECKS = "leak_checks.json"


class LeakCheck(BaseModel):
    """One sign of a leak that was looked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    looked_for: str
    """The sign, in words."""
    found: str
    """What there was of it, in words."""
    clean: bool
    """Whether nothing speaks of a leak."""


def check_leaks(dataset: Dataset, split: Split | FeatureArrays) -> tuple[LeakCheck, ...]:
    """Look for signs of a leak in a dataset and in how it is cut by time.

    Args:
        dataset: With impressions.
        split: Its parts, as tables or as the arrays that were built of them.
    """
    return (*_split_checks(split), *_feature_checks(dataset, split), *_query_checks(dataset))


def _split_checks(split: Split | FeatureArrays) -> list[LeakCheck]:
    parts = {part: _requests(split, part) for part in PARTS}
    last_trained = max(parts[part]["time"].max() for part in ("train", "validation"))  # pyright: ignore
    test_begins = parts["test"]["time"].min()
    return [
        _check(
            "A request with impressions in two parts",
            _shared(parts, "request_id"),
            "no request is in two of train, validation and test",
        ),
        LeakCheck(
            looked_for="Training or validation rows from the time of the test",
            found=f"test begins at {str(test_begins)[:19]}, everything learned from "
            f"ends at {str(last_trained)[:19]} (UTC)",
            clean=bool(test_begins >= last_trained),  # pyright: ignore
        ),
    ]


def _requests(split: Split | FeatureArrays, part: str) -> pl.DataFrame:
    """Request and time of a part's impressions."""
    if isinstance(split, Split):
        return getattr(split, part).select("request_id", "time")
    columns = {name: split.array(part, f"{name}_N") for name in ("request", "time_us")}
    time = pl.col("time_us").cast(pl.Datetime("us", "UTC")).alias("time")
    return pl.DataFrame(columns).select(pl.col("request").alias("request_id"), time)


def _feature_checks(dataset: Dataset, split: Split | FeatureArrays) -> list[LeakCheck]:
    features = dataset.spec.features
    nothing = {
        f"A single feature that predicts clicks with AUC {NEAR_PERFECT_AUC:g} or more": "none of "
        f"{len(features.sparse) + len(features.dense)} does",
        "A feature that is the click rate of an id over the rows it describes": "none",
        "Events or moments that lie after the impression they describe": "none",
    }
    if isinstance(split, FeatureArrays):
        # Such features are not built.
        return [_check(looked_for, "", words) for looked_for, words in nothing.items()]
    tables = {
        name: dataset.table(name) for name in ("impressions", "events", "products", "queries")
        if dataset.has(name)
    }  # fmt: skip
    impressions = tables["impressions"]
    train_N = np.zeros(impressions.height, np.bool_)
    train_N[split.train_row_N] = True
    found = (
        near_perfect_features(tables, dataset.spec, train_N),
        statistics_that_saw_their_rows(impressions, dataset.spec, train_N),
        leak_violations(tables, dataset.spec),
    )
    return [
        _check(looked_for, violations, words)
        for (looked_for, words), violations in zip(nothing.items(), found, strict=True)
    ]


def _query_checks(dataset: Dataset) -> list[LeakCheck]:
    if not (dataset.has("relevance") and dataset.has("queries")):
        return []
    queries = dataset.table("queries")
    text = queries.select("query_id", pl.col("query").str.to_lowercase())
    train_pairs, test_pairs = (
        pairs.join(text, on="query_id", how="left")
        for pairs in split_relevance(dataset.table("relevance"), queries)
    )
    return [
        _check(
            "Queries that vectors were trained on among those they are judged on, in any case",
            _shared({"train": train_pairs, "test": test_pairs}, "query"),
            f"none of {test_pairs['query'].n_unique():,} judged queries",
        )
    ]


def check_results(comparison: Comparison | None, oracle_auc: float | None) -> tuple[LeakCheck, ...]:
    """Look for signs of a leak in what the models scored.

    Args:
        comparison: Of the variants.
        oracle_auc: AUC of the true click probabilities, slot included, where they are known.
    """
    if comparison is None:
        return ()
    checks = []
    if {"random_vectors", "shuffled_vectors"} <= set(comparison.controls):
        warning = comparison.leak_warning()
        gap = comparison["shuffled_vectors"].auc - comparison["random_vectors"].auc
        checks.append(
            LeakCheck(
                looked_for="Shuffled vectors above random ones: neither means anything",
                found=warning or f"{gap:+.4f} AUC, shuffled minus random: not beyond chance",
                clean=warning is None,
            )
        )
    if oracle_auc is not None:
        best = max(comparison.rows, key=lambda row: row.auc)
        checks.append(
            LeakCheck(
                looked_for="A model above the true click probabilities, which nothing can be",
                found=f"the best, {best.name}, has AUC {best.auc:.4f}; the truth has "
                f"{oracle_auc:.4f}",
                clean=best.auc_low <= oracle_auc,
            )
        )
    return tuple(checks)


def _check(looked_for: str, found: Sequence[Violation] | str, nothing: str) -> LeakCheck:
    words = found if isinstance(found, str) else "; ".join(map(str, found))
    return LeakCheck(looked_for=looked_for, found=words or nothing, clean=not words)


def _shared(parts: dict[str, pl.DataFrame], key: str) -> str:
    """Say which parts have values of a column in common; empty if none have."""
    names = list(parts)
    said = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = parts[one][key].unique().is_in(parts[other][key].unique().implode()).sum()
            if both:
                said.append(f"{both:,} in both {one} and {other}")
    return "; ".join(said)
