"""What a bundle's network is fed: impressions split into what changes by candidate and what not.

The user, the query, the time and the purchases are the same for all candidates of a request. The
graph takes them as R rows, where R is 1 (one request, N candidates) or N (any impressions), and
works on them R times; so a request pays for its own side once.

Shape letters: N impressions, R rows of the request's side (1 or N), F sparse features, C dense
columns, D size of the given vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors, gather_vectors
from features.examples import Examples
from ranking.contract import InputSignature

REQUEST_COLUMNS = ("user_id", "query_id")
REQUEST_TABLES = ("queries", "time")
"""Features of these names, or of these tables, do not change by candidate."""


@dataclass(frozen=True, kw_only=True)
class FeatureSplit:
    """Which columns belong to the request and which to the candidate."""

    request_sparse: NDArray[np.int64]
    """Columns of ``Examples.sparse_NF``, as all four count them."""
    candidate_sparse: NDArray[np.int64]
    request_dense: NDArray[np.int64]
    candidate_dense: NDArray[np.int64]

    @classmethod
    def of(cls, signature: InputSignature) -> Self:
        """Return the split of a model's features, by their names.

        A model without vectors whose features are all the request's has no candidate side; its
        features then count as the candidate's, so that the graph returns one row each.
        """
        sparse_F = np.array([_of_request(name) for name in signature.sparse_names], bool)
        dense_C = np.array([_of_request(name) for name in signature.dense_names], bool)
        if signature.vectors_dim is None and sparse_F.all() and dense_C.all():
            sparse_F[:], dense_C[:] = False, False
        return cls(
            request_sparse=np.flatnonzero(sparse_F),
            candidate_sparse=np.flatnonzero(~sparse_F),
            request_dense=np.flatnonzero(dense_C),
            candidate_dense=np.flatnonzero(~dense_C),
        )

    def one_request(self, examples: Examples, *, with_vectors: bool) -> bool:
        """Whether all rows agree in everything that belongs to the request."""
        parts = [
            examples.sparse_NF[:, self.request_sparse],
            examples.dense_NC[:, self.request_dense],
        ]
        if with_vectors:
            parts += [examples.query_N[:, None], examples.history_NL]
        return all(bool((part[1:] == part[:1]).all()) for part in parts)


def graph_feed(
    split: FeatureSplit, examples: Examples, vectors: Vectors | None
) -> dict[str, NDArray]:
    """Return the inputs of ``model.onnx`` by name, those without columns left out.

    ``request_sparse`` and ``candidate_sparse`` are int32, (R, ·) and (N, ·); ``request_dense``
    and ``candidate_dense`` float32. With vectors also ``product`` (N, D), ``product_present``
    (N, 1), ``query`` and ``history`` (R, D), and ``request_present`` (R, 2): whether the query
    and the history have a vector.
    """
    one = len(examples) > 0 and split.one_request(examples, with_vectors=vectors is not None)
    side = slice(0, 1) if one else slice(None)
    feed: dict[str, NDArray] = {
        "request_sparse": examples.sparse_NF[side, split.request_sparse],
        "candidate_sparse": examples.sparse_NF[:, split.candidate_sparse],
        "request_dense": examples.dense_NC[side, split.request_dense],
        "candidate_dense": examples.dense_NC[:, split.candidate_dense],
    }
    feed = {name: values for name, values in feed.items() if values.shape[1]}
    if vectors is not None:
        rows = gather_vectors(vectors, examples.take(side))
        feed["query"], feed["history"] = rows.query_ND, rows.history_ND
        feed["request_present"] = rows.present_N3[:, 1:]
        known_N = examples.product_N >= 0
        product_ND = vectors.product_PD[examples.product_N]
        product_ND[~known_N] = 0
        present_N = vectors.product_present_P[examples.product_N] & known_N
        feed["product"], feed["product_present"] = product_ND, present_N[:, None]
    return {
        name: np.ascontiguousarray(v, np.int32 if name.endswith("sparse") else np.float32)
        for name, v in feed.items()
    }


def _of_request(name: str) -> bool:
    table, _, column = name.partition(".")
    # "query_id.missing" marks a missing value of the same feature.
    return table in REQUEST_COLUMNS or (table in REQUEST_TABLES and bool(column))
