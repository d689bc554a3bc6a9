"""How far an annotator's labels can be trusted: the same account for a judge and for an LLM.

The annotator is compared with human labels of queries it never learned from. Intervals draw whole
queries with replacement, because pairs of one query succeed and fail together.

Shape letters: N pairs that both labelled, Q their queries, K = 3 classes.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from embeddings.evaluate import relevance_aucs
from embeddings.relevance.agreement import (
    CLASSES,
    calibration_error,
    coincidence_matrix,
    confusion_matrix,
    reliability,
    weighted_kappa,
)

KEY = ["query_id", "product_id"]
PROBABILITIES = ["p0", "p1", "p2"]
RESAMPLES = 300
CONFIDENCE = 0.95


class Disagreement(BaseModel):
    """Who agrees with the human where the annotator and another one differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    other: str
    """The other annotator, such as a baseline."""
    compared: int
    """Pairs that all three labelled."""
    pairs: int
    """Those of them on which the annotator and the other differ."""
    annotator_right: float
    """Share of ``pairs`` on which the human says what the annotator says."""
    other_right: float
    """Share on which the human says what the other says; the rest are wrong in both."""
    other_kappa_quadratic: float | None
    """The other's own agreement with the human, over ``compared``."""


class Agreement(BaseModel):
    """How far people agree with each other: no annotator can be asked for much more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int
    """Pairs that several people labelled."""
    kappa_quadratic: float | None
    kappa_linear: float | None
    exact: float
    """Share of equal labels among two of one pair."""


class Audit(BaseModel):
    """An annotator beside the human labels. Round trips through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotator: str
    pairs: int
    """Pairs that a human and the annotator labelled."""
    queries: int
    not_labelled: int
    """Pairs with a human label that the annotator did not label."""
    metrics: dict[str, float]
    """``kappa_quadratic``, ``kappa_linear``, ``accuracy``, ``precision_K``, ``recall_K``; with
    probabilities also ``auc_2v0``, ``auc_2v1``, ``auc_1v0`` of the expected label, ``ece`` of the
    label given, ``ece_classes`` over all classes, ``log_loss``; ``rmse`` where both sides have a
    rating. What the pairs do not support is left out."""
    intervals: dict[str, tuple[float, float]]
    """Of the metrics, at 95%, by drawing queries."""
    confusion: list[list[int]]
    """Rows are the human's classes, columns the annotator's."""
    reliability: dict[int, list[tuple[float, float, int]]]
    """By class, bins of (mean probability, share of pairs with that human label, pairs)."""
    disagreement: Disagreement | None = None
    humans: Agreement | None = None
    """None where no pair has two human labels."""

    def to_metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat figures, their interval ends as ``NAME_low`` and ``NAME_high``."""
        flat = {"pairs": float(self.pairs), "not_labelled": float(self.not_labelled)}
        flat |= self.metrics
        for name, (low, high) in self.intervals.items():
            flat |= {f"{name}_low": low, f"{name}_high": high}
        if self.disagreement is not None:
            flat["disagreement.pairs"] = float(self.disagreement.pairs)
            flat["disagreement.annotator_right"] = self.disagreement.annotator_right
            flat["disagreement.other_right"] = self.disagreement.other_right
        if self.humans is not None:
            flat["humans.exact"] = self.humans.exact
            if self.humans.kappa_quadratic is not None:
                flat["humans.kappa_quadratic"] = self.humans.kappa_quadratic
        return {prefix + name: value for name, value in flat.items()}


def audit_labels(
    human: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    annotator: str,
    other: pl.DataFrame | None = None,
    other_name: str = "baseline",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Audit:
    """Compare an annotator's labels with human ones.

    Args:
        human: query_id, product_id, label, [rating]; of queries the annotator did not learn from.
            A pair that several people labelled counts once, with their rounded mean.
        labels: The annotator's query_id, product_id, label, [p0, p1, p2], [rating], one row a
            pair; rows with a null label count as not labelled.
        annotator: Its name.
        other: query_id, product_id, label of a second annotator or a baseline.
        other_name: Its name.
        seed: Of the draws of queries.
        resamples: Draws; 0 gives no intervals.

    Raises:
        ValueError: If there is no human label, no pair that both labelled, a pair twice among the
            annotator's labels, a label other than 0, 1, 2, or probabilities that do not sum to 1.
    """
    if not len(human):
        raise ValueError(
            f"there is no human label to audit {annotator!r} by; the relevance table needs rows of "
            "source 'human' on held-out queries"
        )
    for name, table in ((annotator, labels), (other_name, other)):
        _refuse_repeats(name, table)
    given = labels.filter(pl.col("label").is_not_null())
    one = _one_row_a_pair(human)
    both = one.join(given, on=KEY, how="inner", suffix="_given", maintain_order="left")
    if not len(both):
        raise ValueError(
            f"{annotator!r} labelled none of the {len(one)} pairs that have a human label, so it "
            "cannot be audited; do the two tables name the same dataset's ids?"
        )
    label_N = both["label"].cast(pl.Int64).to_numpy()
    given_N = both["label_given"].cast(pl.Int64).to_numpy()
    p_NK = _probabilities(both, annotator)
    rating_N2 = None
    if "rating" in human.columns and "rating" in given.columns:
        rating_N2 = both.select("rating", "rating_given").cast(pl.Float64).to_numpy()
    query_N = both["query_id"].rank("dense").to_numpy().astype(np.int64) - 1
    confusion_KK = confusion_matrix(label_N, given_N)
    return Audit(
        annotator=annotator,
        pairs=len(both),
        queries=int(query_N.max()) + 1,
        not_labelled=len(one) - len(both),
        metrics=agreement_metrics(label_N, given_N, p_NK, rating_N2),
        intervals=_intervals(query_N, label_N, given_N, p_NK, rating_N2, seed, resamples),
        confusion=confusion_KK.astype(int).tolist(),
        reliability=(
            {k: reliability(p_NK[:, k], label_N == k) for k in range(CLASSES)}
            if p_NK is not None
            else {}
        ),
        disagreement=None if other is None else _disagreement(both, other, other_name),
        humans=_human_agreement(human),
    )


def agreement_metrics(
    label_N: NDArray[np.int64],
    given_N: NDArray[np.int64],
    p_NK: NDArray[np.floating] | None,
    rating_N2: NDArray[np.floating] | None,
) -> dict[str, float]:
    """The metrics of an ``Audit``.

    Args:
        label_N: Human labels.
        given_N: The annotator's.
        p_NK: Its probabilities, or None.
        rating_N2: Mean human rating and the annotator's estimate of it, or None.
    """
    confusion_KK = confusion_matrix(label_N, given_N)
    metrics: dict[str, float | None] = {
        "kappa_quadratic": weighted_kappa(confusion_KK, "quadratic"),
        "kappa_linear": weighted_kappa(confusion_KK, "linear"),
        "accuracy": float((label_N == given_N).mean()),
    }
    for k in range(CLASSES):
        metrics[f"precision_{k}"] = _share(confusion_KK[k, k], confusion_KK[:, k].sum())
        metrics[f"recall_{k}"] = _share(confusion_KK[k, k], confusion_KK[k].sum())
    if p_NK is not None:
        metrics |= relevance_aucs(p_NK @ np.arange(CLASSES), label_N)
        own_N = p_NK[np.arange(len(given_N)), given_N]
        metrics["ece"] = calibration_error(reliability(own_N, label_N == given_N))
        metrics["ece_classes"] = float(
            np.mean(
                [calibration_error(reliability(p_NK[:, k], label_N == k)) for k in range(CLASSES)]
            )
        )
        true_N = p_NK[np.arange(len(label_N)), label_N]
        metrics["log_loss"] = float(-np.log(np.maximum(true_N, 1e-12)).mean())
    if rating_N2 is not None:
        rated_M2 = rating_N2[~np.isnan(rating_N2).any(axis=1)]
        if len(rated_M2):
            metrics["rmse"] = float(np.sqrt(np.mean((rated_M2[:, 0] - rated_M2[:, 1]) ** 2)))
    return {name: value for name, value in metrics.items() if value is not None}


def _intervals(
    query_N: NDArray[np.int64],
    label_N: NDArray[np.int64],
    given_N: NDArray[np.int64],
    p_NK: NDArray[np.floating] | None,
    rating_N2: NDArray[np.floating] | None,
    seed: int,
    resamples: int,
) -> dict[str, tuple[float, float]]:
    """Percentiles of each metric over draws of the queries.

    A metric that some draws do not support has the interval of those that do.
    """
    rows = np.split(np.argsort(query_N, kind="stable"), np.cumsum(np.bincount(query_N))[:-1])
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for _ in range(resamples):
        row_N = np.concatenate([rows[q] for q in rng.integers(len(rows), size=len(rows))])
        drawn = agreement_metrics(
            label_N[row_N],
            given_N[row_N],
            None if p_NK is None else p_NK[row_N],
            None if rating_N2 is None else rating_N2[row_N],
        )
        for name, value in drawn.items():
            values.setdefault(name, []).append(value)
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    return {
        name: (float(np.quantile(drawn, ends[0])), float(np.quantile(drawn, ends[1])))
        for name, drawn in values.items()
    }


def _disagreement(both: pl.DataFrame, other: pl.DataFrame, name: str) -> Disagreement:
    three = both.join(
        other.filter(pl.col("label").is_not_null()).select(
            *KEY, pl.col("label").cast(pl.Int64).alias("other")
        ),
        on=KEY,
        how="inner",
    )
    differ = three.filter(pl.col("label_given") != pl.col("other"))
    confusion_KK = confusion_matrix(
        three["label"].cast(pl.Int64).to_numpy(), three["other"].to_numpy()
    )
    return Disagreement(
        other=name,
        compared=len(three),
        pairs=len(differ),
        annotator_right=len(differ.filter(pl.col("label") == pl.col("label_given")))
        / max(1, len(differ)),
        other_right=len(differ.filter(pl.col("label") == pl.col("other"))) / max(1, len(differ)),
        other_kappa_quadratic=weighted_kappa(confusion_KK, "quadratic"),
    )


def _human_agreement(human: pl.DataFrame) -> Agreement | None:
    pair_N = human.select(pl.struct(KEY).rank("dense")).to_series().to_numpy()
    both_KK = coincidence_matrix(human["label"].cast(pl.Int64).to_numpy(), pair_N)
    if both_KK is None:
        return None
    return Agreement(
        pairs=int((np.unique(pair_N, return_counts=True)[1] > 1).sum()),
        kappa_quadratic=weighted_kappa(both_KK, "quadratic"),
        kappa_linear=weighted_kappa(both_KK, "linear"),
        exact=float(np.trace(both_KK) / both_KK.sum()),
    )


def _one_row_a_pair(human: pl.DataFrame) -> pl.DataFrame:
    rating = [pl.col("rating").mean()] if "rating" in human.columns else []
    return human.group_by(KEY, maintain_order=True).agg(
        (pl.col("label").cast(pl.Float64).mean() + 0.5).floor().cast(pl.Int64), *rating
    )


def _probabilities(both: pl.DataFrame, annotator: str) -> NDArray[np.float64] | None:
    if (
        not set(PROBABILITIES) <= set(both.columns)
        or both.select(PROBABILITIES).null_count().sum_horizontal()[0]
    ):
        return None
    p_NK = both.select(PROBABILITIES).cast(pl.Float64).to_numpy()
    off_N = np.abs(p_NK.sum(axis=1) - 1) > 1e-3
    if off_N.any() or (p_NK < 0).any():
        row = int(np.argmax(off_N | (p_NK < 0).any(axis=1)))
        raise ValueError(
            f"{annotator!r} gives probabilities {p_NK[row].tolist()} to query "
            f"{both['query_id'][row]!r} and product {both['product_id'][row]!r}; the three must be "
            "shares that sum to 1"
        )
    return p_NK


def _refuse_repeats(name: str, table: pl.DataFrame | None) -> None:
    if table is None:
        return
    repeated = table.filter(table.select(KEY).is_duplicated())
    if len(repeated):
        raise ValueError(
            f"{name!r} labels query {repeated['query_id'][0]!r} and product "
            f"{repeated['product_id'][0]!r} {repeated.height} times; give one row a pair"
        )


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
