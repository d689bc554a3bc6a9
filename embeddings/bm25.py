"""BM25, the word matching that search engines begin with.

Shape letters: N pairs, Q queries, P products, V words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from embeddings.text import product_texts

SATURATION = 1.2
"""k1: how soon a word that occurs again counts no more."""
LENGTH_WEIGHT = 0.75
"""b: how much a long text is held against its words; 0 is not at all."""


class Bm25Scores:
    """BM25 of product texts; an ``embeddings.evaluate.Scores``.

    Args:
        products: product_id and text columns.
        queries: query_id, query.
        text_columns: Columns that make the text, in order; those that are there.

    Source:
        Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", section 3; with
        Lucene's idf, log(1 + (P - n + 1/2) / (n + 1/2)), which is never negative.
    """

    def __init__(
        self,
        products: pl.DataFrame,
        queries: pl.DataFrame,
        *,
        text_columns: Sequence[str] = ("title",),
    ) -> None:
        texts = product_texts(products, text_columns)
        words = CountVectorizer(token_pattern=r"(?u)\w+")
        # Words of no query never score; one is added lest there be none at all.
        asked = queries["query"].to_list()
        words.fit([*asked, "word"])
        query_QV = csr_array(words.transform(asked), dtype=np.float64)
        weight_PV = csr_array(words.transform(texts), dtype=np.float64)
        split = words.build_analyzer()
        length_P = np.array([len(split(text)) for text in texts], np.float64)
        df_V = np.bincount(weight_PV.indices, minlength=len(words.vocabulary_))
        idf_V = np.log1p((len(texts) - df_V + 0.5) / (df_V + 0.5))
        relative_P = length_P / max(length_P.mean(), 1e-12)
        penalty_P = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * relative_P)
        penalty_T = np.repeat(penalty_P, np.diff(weight_PV.indptr))
        count_T = weight_PV.data
        weight_PV.data = (
            idf_V[weight_PV.indices] * count_T * (SATURATION + 1) / (count_T + penalty_T)
        )
        self.product_ids = products["product_id"].to_list()
        self._weight_PV, self._query_QV = weight_PV, query_QV
        self._product_row = {key: row for row, key in enumerate(self.product_ids)}
        self._query_row = {key: row for row, key in enumerate(queries["query_id"].to_list())}

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with the product beside it, (N,); 0 shares no word."""
        query_NV = self._query_QV[[self._query_row[key] for key in query_ids]]
        weight_NV = self._weight_PV[[self._product_row[key] for key in product_ids]]
        return np.asarray((query_NV * weight_NV).sum(axis=1), np.float32).ravel()

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with every product, (Q, P)."""
        query_QV = self._query_QV[[self._query_row[key] for key in query_ids]]
        return np.asarray((query_QV @ self._weight_PV.T).todense(), np.float32)
