"""What simple classifiers read off product vectors: their categories.

Trained on seven tenths of the product groups, so that a listing and its duplicate never stand on
both sides.

Shape letters: V vectors, D embedding size.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from embeddings.scores import known_rows, unit_rows
from embeddings.store import VectorStore

MIN_CATEGORY_ROWS = 10
"""Categories with fewer products are left out."""
TEST_TENTHS = 3
NEIGHBOURS = 10
HIDDEN = 128
"""Width of the MLP's one hidden layer."""
PASSES = 60
"""Times that the MLP sees its training products."""


@dataclass(frozen=True, kw_only=True)
class ProbeRows:
    """Product vectors with their categories, and which of them are held out."""

    unit_VD: NDArray[np.float32]
    category_V: NDArray[np.str_]
    held_V: NDArray[np.bool_]

    def f1(self, classifier: Any) -> float:
        """Fit a classifier of scikit-learn and return its macro-F1 on what is held out."""
        classifier.fit(self.unit_VD[~self.held_V], self.category_V[~self.held_V])
        predicted = classifier.predict(self.unit_VD[self.held_V])
        return float(f1_score(self.category_V[self.held_V], predicted, average="macro"))


def category_probe(store: VectorStore, products: pl.DataFrame) -> float | None:
    """Macro-F1 of a ridge classifier that reads the category off the vector.

    Args:
        store: Product vectors.
        products: product_id, [category], [group_id].

    Returns:
        The macro-F1, or None where there are not two categories of ``MIN_CATEGORY_ROWS`` products.
    """
    rows = probe_rows(store, products)
    return None if rows is None else rows.f1(RidgeClassifier(alpha=1.0))


def category_probes(rows: ProbeRows, *, seed: int) -> dict[str, float]:
    """Macro-F1 of three classifiers: neighbours alone, straight borders, and curved ones.

    Returns:
        ``knn_f1`` (the ten nearest by cosine, a vote each), ``linear_f1`` (ridge, as
        ``category_probe``), ``mlp_f1`` (one hidden layer).
    """
    # Of unit rows the nearest by distance are the nearest by cosine.
    neighbours = min(NEIGHBOURS, int((~rows.held_V).sum()))
    measures = {
        "knn_f1": rows.f1(KNeighborsClassifier(neighbours)),
        "linear_f1": rows.f1(RidgeClassifier(alpha=1.0)),
    }
    # Unit rows of many dimensions have tiny entries, from which Adam would take long to start.
    scaled = ProbeRows(
        unit_VD=rows.unit_VD * np.float32(np.sqrt(rows.unit_VD.shape[1])),
        category_V=rows.category_V,
        held_V=rows.held_V,
    )
    with warnings.catch_warnings():
        # All vectors get the same number of passes, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        measures["mlp_f1"] = scaled.f1(MLPClassifier((HIDDEN,), max_iter=PASSES, random_state=seed))
    return measures


def probe_rows(
    store: VectorStore, products: pl.DataFrame, *, max_rows: int | None = None, seed: int = 0
) -> ProbeRows | None:
    """Choose the products that probes learn and are judged on.

    Args:
        store: Product vectors.
        products: product_id, [category], [group_id].
        max_rows: Products at most, a sample that is the same for every store.
        seed: Of the sample.

    Returns:
        The rows, or None where there are not two categories of ``MIN_CATEGORY_ROWS`` products.

    Raises:
        ValueError: If the store lacks a product.
    """
    if "category" not in products.columns:
        return None
    table = products.with_columns(
        pl.col("group_id").cast(pl.String).fill_null(pl.col("product_id"))
        if "group_id" in products.columns
        else pl.col("product_id").alias("group_id")
    )
    if max_rows is not None and len(table) > max_rows:
        row_V = np.random.default_rng(seed).choice(len(table), max_rows, replace=False)
        table = table[np.sort(row_V)]
    table = table.filter(
        pl.col("category").is_not_null() & (pl.len().over("category") >= MIN_CATEGORY_ROWS)
    )
    category_V = table["category"].cast(pl.String).to_numpy()
    held_V = np.array([_tenth(group) < TEST_TENTHS for group in table["group_id"].to_list()], bool)
    if len(np.unique(category_V[~held_V])) < 2 or not held_V.any():
        return None
    row_V = known_rows(store, table["product_id"].to_list(), "product")
    return ProbeRows(
        unit_VD=unit_rows(store.vectors_VD[row_V]), category_V=category_V, held_V=held_V
    )


def _tenth(group: str) -> int:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
