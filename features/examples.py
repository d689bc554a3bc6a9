"""What a click model is given: impressions as arrays.

Shape letters: N rows (one impression each), F sparse features, C dense columns, L history length.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Impressions turned into arrays, one row each, by a fitted ``FeaturePipeline``.

    Products and queries are named by their row in the pipeline's catalogue (``product_ids`` and
    ``query_ids`` of ``FeaturePipeline``), so vectors are joined by row number and never copied
    into rows. -1 stands for a product or query that the catalogue does not have.

    Raises:
        ValueError: If the arrays or names do not fit together.
    """

    sparse_names: tuple[str, ...]
    """Names of the sparse features, in column order of ``sparse_NF``."""
    sparse_NF: NDArray[np.int32]
    """Row of each value in its feature's vocabulary; 0 is out-of-vocabulary."""
    vocabulary_sizes: tuple[int, ...]
    """Rows of each sparse feature's table, out-of-vocabulary included."""
    dense_names: tuple[str, ...]
    """Names of the dense columns, in column order of ``dense_NC``."""
    dense_NC: NDArray[np.float32]
    """Transformed dense values, finite."""
    product_N: NDArray[np.int32]
    """Catalogue row of the product, -1 if unknown."""
    query_N: NDArray[np.int32]
    """Catalogue row of the query, -1 if unknown or absent."""
    history_NL: NDArray[np.int32]
    """Catalogue rows of products bought in the window strictly before the impression, newest
    first, padded with -1."""
    user_N: NDArray[np.int64]
    """A code for the user, for grouped metrics and clustered intervals; 0.. in order of
    appearance within one ``transform``; every row without a user has a code of its own."""
    request_N: NDArray[np.int64]
    """A code for the request, made as ``user_N`` is."""
    time_us_N: NDArray[np.int64]
    """Microseconds since the epoch, UTC."""
    label_N: NDArray[np.float32] | None
    """1 where clicked, else 0; None where the table has no labels (scoring)."""
    purchased_N: NDArray[np.float32] | None = None
    """1 where bought, else 0; None where unknown."""
    position_N: NDArray[np.int32] | None = None
    """Slot on the page, from 1, 0 where unknown; None where the table has none (scoring). Never a
    feature: a model may learn from it how much of the clicks is the slot's."""
    weight_N: NDArray[np.float32] | None = None
    """How much the row counts in training, 0 or more; None where all count alike."""
    run_rows: int = 1
    """Rows that a training may read as they lie, one after another, for the sake of the disk. More
    than 1 only where rows lie in an order drawn by lot."""

    def __post_init__(self) -> None:
        shapes = {
            f.name: value.shape
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        wrong = [f"{name} {shape}" for name, shape in shapes.items() if shape[0] != len(self)]
        if wrong:
            raise ValueError(f"product_N has {len(self)} rows, unlike {', '.join(wrong)}")
        if not self.sparse_NF.shape[1] == len(self.sparse_names) == len(self.vocabulary_sizes):
            raise ValueError(
                f"sparse_NF has shape {self.sparse_NF.shape} for {len(self.sparse_names)} names "
                f"and {len(self.vocabulary_sizes)} vocabularies"
            )
        if self.dense_NC.shape[1] != len(self.dense_names):
            raise ValueError(
                f"dense_NC has shape {self.dense_NC.shape} for {len(self.dense_names)} names"
            )

    def __len__(self) -> int:
        return len(self.product_N)

    def take(self, row_N: NDArray[np.integer] | slice) -> Examples:
        """Return the rows ``row_N`` (indices, a boolean mask or a slice), in that order."""
        per_row = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self,
            run_rows=1,
            **{k: v[row_N] for k, v in per_row.items() if isinstance(v, np.ndarray)},
        )
