"""The cosines of ``features.similarity`` as dense columns of examples, scaled on training rows.

They stand behind the other dense columns, and need nothing of an impression but its catalogue rows
and its history. So one log can be compared by many kinds of vectors, and a scoring request by the
vector of a query text that no catalogue holds.

Shape letters: N rows, L history length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.dense import DenseTransform
from features.embedding_join import Vectors
from features.examples import Examples
from features.similarity import Similarities


class CosineColumns:
    """Scaled cosines of one kind of vectors.

    Args:
        similarities: What is compared, and in how many bins.
        transforms: Of each of its columns, fitted on training rows.
    """

    def __init__(self, similarities: Similarities, transforms: dict[str, DenseTransform]) -> None:
        self.similarities = similarities
        self.transforms = transforms

    @classmethod
    def fit(
        cls,
        similarities: Similarities,
        product_N: NDArray[np.int32],
        query_N: NDArray[np.int32],
        history_NL: NDArray[np.int32],
    ) -> CosineColumns:
        """Learn the scales from training rows, given as ``Similarities.columns`` takes them."""
        columns = _columns(similarities, product_N, query_N, history_NL)
        return cls(
            similarities, {name: DenseTransform(name).fit(column) for name, column in columns}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Dense columns, masks of missing values included."""
        return tuple(
            name for transform in self.transforms.values() for name in transform.output_names
        )

    def added_to(self, examples: Examples, vectors: Vectors | None = None) -> Examples:
        """Return the examples with these columns behind their dense ones.

        Args:
            examples: Without the columns.
            vectors: What ``query_N`` counts in, where queries were encoded since; products are
                those of the fit.
        """
        similarities = self.similarities
        if vectors is not None and vectors is not similarities.vectors:
            similarities = similarities.with_queries_of(vectors)
        columns = _columns(similarities, examples.product_N, examples.query_N, examples.history_NL)
        scaled = [self.transforms[name].transform(column) for name, column in columns]
        return replace(
            examples,
            dense_names=(*examples.dense_names, *self.names),
            dense_NC=np.concatenate([examples.dense_NC, *scaled], axis=1),
        )


def _columns(
    similarities: Similarities,
    product_N: NDArray[np.int32],
    query_N: NDArray[np.int32],
    history_NL: NDArray[np.int32],
) -> list[tuple[str, NDArray[np.float64]]]:
    return list(similarities.columns(product_N, query_N, history_NL).items())
