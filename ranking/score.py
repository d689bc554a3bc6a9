"""Score requests and tables of impressions with a bundle, by onnxruntime alone.

A request becomes a table of impressions, so both take one path from raw values to scores.

Shape letters: N impressions, K candidates of a request, Q query vectors, D size of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import VectorStore
from features.embedding_join import Vectors, join_vectors
from features.examples import Examples
from features.history import PurchaseHistory
from features.pipeline import FeaturePipeline
from features.sparse import ValueIndex
from ranking.bundle import Bundle, BundleManifest, open_bundle
from ranking.predictor import Predictor
from ranking.query_encoder import QUERY_ENCODER, OnnxQueryEncoder
from ranking.request_table import Diagnostics, QueryVector, ScoredRequest, request_frame

if TYPE_CHECKING:
    # Tables are scored where pydantic, which requests are checked with, is not installed.
    from ranking.request import Purchase, ScoreRequest


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request whose features are computed."""

    examples: Examples
    """One row a candidate, K rows."""
    vectors: Vectors | None
    """Those of the products, and the one vector of this request's query."""
    diagnostics: Diagnostics


class Scorer:
    """A loaded bundle: raw impressions in, P(click) out. Safe to share among threads."""

    bundle: Bundle
    manifest: BundleManifest
    pipeline: FeaturePipeline
    vectors: Vectors | None
    """Those the model was trained with; None where it uses none."""
    query_encoder: OnnxQueryEncoder | None
    """Encodes query texts that have no vector; None where the bundle has no encoder."""
    _predictor: Predictor
    _products: ValueIndex

    @classmethod
    def load(
        cls, bundle: str | Path, *, threads: int = 1, vectors: str | Path | None = None
    ) -> Self:
        """Verify a bundle and load it.

        Args:
            bundle: A folder that ``adtower export`` wrote.
            threads: Of onnxruntime. One is fastest for some hundred candidates.
            vectors: As ``open_bundle`` takes it.

        Raises:
            ValueError: If the folder is no bundle, a file was changed, its vectors are not those
                that the model was trained with, or its query encoder makes other ones.
        """
        opened = open_bundle(bundle, vectors=vectors)
        scorer = cls()
        scorer.bundle = opened
        scorer.manifest = opened.manifest
        scorer.pipeline = FeaturePipeline.load(opened.features)
        scorer.vectors = scorer.query_encoder = None
        if opened.product_vectors is not None and opened.query_vectors is not None:
            query_store = VectorStore.open(opened.query_vectors)
            scorer.vectors = join_vectors(
                VectorStore.open(opened.product_vectors),
                query_store,
                scorer.pipeline.product_ids_,
                scorer.pipeline.query_ids_,
            )
            opened.manifest.signature.check_vectors(scorer.vectors)
            if any(name.startswith(f"{QUERY_ENCODER}/") for name in opened.files):
                scorer.query_encoder = OnnxQueryEncoder.load(
                    opened.folder / QUERY_ENCODER, threads=threads
                )
                _same_space(scorer.query_encoder, query_store)
        scorer._predictor = Predictor.load(opened, threads=threads)
        scorer._products = ValueIndex(scorer.pipeline.product_ids_)
        return scorer

    @overload
    def score(self, what: ScoreRequest) -> ScoredRequest: ...

    @overload
    def score(self, what: pl.DataFrame) -> NDArray[np.float64]: ...

    def score(self, what: ScoreRequest | pl.DataFrame) -> ScoredRequest | NDArray[np.float64]:
        """Score the candidates of a request, or every row of a table of impressions.

        Args:
            what: A request; or raw rows with the columns of ``FeaturePipeline.required_columns``
                and, if wanted, ``query``: texts for the rows whose query has no vector. Unknown
                users, queries and products are scored as such.

        Returns:
            Of a request, scores, order and what was unknown. Of a table, P(click) of every row,
            shape (N,).

        Raises:
            ValueError: If a column is missing, unknown, has the wrong type or holds what it may
                not.
        """
        if not isinstance(what, pl.DataFrame):
            return self.score_prepared(self.prepare(what))
        what = self._with_known_queries(what)
        examples = self.pipeline.without_cosines(what)
        return self.score_examples(*self._with_encoded_queries(what, examples))

    def prepare(self, request: ScoreRequest) -> Prepared:
        """Compute the features of a request; its query and history are looked up once.

        Raises:
            ValueError: As ``score``.
        """
        frame = self._with_known_queries(request_frame(request, self.pipeline.spec.features))
        cached = self.query_encoder is not None and self.query_encoder.cached(request.query or "")
        examples = self.pipeline.without_cosines(frame)
        if request.purchases is not None:
            examples = self._with_purchases(examples, request.purchases)
        unknown_query = request.asks and examples.query_N[0] < 0
        stored = bool(self._has_query_vector(examples)[0])
        examples, vectors = self._with_encoded_queries(frame, examples)
        query_vector: QueryVector = "unused"
        if vectors is not None:
            has_vector = examples.query_N[0] >= 0 and vectors.query_present_Q[examples.query_N[0]]
            made: QueryVector = "cached" if cached else "encoded"
            query_vector = "stored" if stored else made if has_vector else "missing"
        return Prepared(
            examples=examples,
            vectors=vectors,
            diagnostics=self._diagnostics(
                request, examples, unknown_query=bool(unknown_query), query_vector=query_vector
            ),
        )

    def score_prepared(self, prepared: Prepared) -> ScoredRequest:
        """Score a request whose features are computed."""
        p_click_K = self.score_examples(prepared.examples, prepared.vectors)
        return ScoredRequest(
            p_click_K=p_click_K,
            order_K=np.argsort(-p_click_K, kind="stable"),
            diagnostics=prepared.diagnostics,
        )

    def score_examples(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of impressions that are arrays already, shape (N,).

        Raises:
            ValueError: If features or vectors are not those the model was trained with.
        """
        return self._predictor.predict(examples, vectors)

    def _with_known_queries(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give rows with a query text and no query id the id that training knew the text by."""
        if self.query_encoder is None or not {"query", "query_id"} <= set(frame.columns):
            return frame
        if not frame["query_id"].null_count():
            return frame
        without_id = frame["query_id"].is_null() & frame["query"].is_not_null()
        if not without_id.any():
            return frame
        known = {text: self.query_encoder.known_id(text)
                 for text in _texts(frame).filter(without_id).unique()}  # fmt: skip
        found = frame["query"].replace_strict(known, default=None, return_dtype=pl.String)
        given = frame["query_id"].cast(pl.String)
        return frame.with_columns(given.zip_with(~without_id, found).alias("query_id"))

    def _has_query_vector(self, examples: Examples) -> NDArray[np.bool_]:
        if self.vectors is None:
            return np.zeros(len(examples), bool)
        # One place more than the catalogue: row -1 answers for what it lacks.
        present_Q = np.append(self.vectors.query_present_Q, False)
        return present_Q[examples.query_N]

    def _with_encoded_queries(
        self, frame: pl.DataFrame, examples: Examples
    ) -> tuple[Examples, Vectors | None]:
        """Point rows without a stored query vector to the encoded vector of their text.

        The vectors returned hold the queries of these rows alone, so that none are copied but
        those in use. Cosines, where features have them, are taken last: of the histories and the
        queries that the model is shown.
        """
        if self.vectors is None or self.query_encoder is None or "query" not in frame.columns:
            return self.pipeline.with_cosines(examples), self.vectors
        _refuse_unless_text(frame["query"])
        stored_N = self._has_query_vector(examples)
        if stored_N.all():
            return self.pipeline.with_cosines(examples), self.vectors
        given = _texts(frame)
        encode_N = ~stored_N & given.is_not_null().to_numpy()
        if not encode_N.any():
            return self.pipeline.with_cosines(examples), self.vectors
        texts, text_N = np.unique(given.to_numpy()[encode_N], return_inverse=True)
        stored_Q, query_N = np.unique(np.where(encode_N, -1, examples.query_N), return_inverse=True)
        encoded_QD = self.query_encoder.encode(texts.tolist())
        query_N[encode_N] = len(stored_Q) + text_N
        # Row -1 of the stored ones, if any row needs it, is a vector of zeros that is absent.
        absent_Q = stored_Q < 0
        stored_QD = np.where(absent_Q[:, None], np.float32(0), self.vectors.query_QD[stored_Q])
        present_Q = ~absent_Q & self.vectors.query_present_Q[stored_Q]
        vectors = replace(
            self.vectors,
            query_QD=np.concatenate([stored_QD, encoded_QD]),
            query_present_Q=np.append(present_Q, np.ones(len(texts), bool)),
        )
        pointed = replace(examples, query_N=query_N.astype(np.int32))
        if self.pipeline.cosines_fingerprint == vectors.fingerprint:
            return self.pipeline.with_cosines(pointed, vectors), vectors
        # Compared by vectors of another encoder, in which a new query has no place.
        compared = self.pipeline.with_cosines(examples)
        return replace(compared, query_N=pointed.query_N), vectors

    def _with_purchases(self, examples: Examples, purchases: tuple[Purchase, ...]) -> Examples:
        """The candidates of one request, with these purchases for the history."""
        bought = pl.DataFrame(
            {
                "user_id": ["buyer"] * len(purchases),
                "product_id": [purchase.product_id for purchase in purchases],
                "time": [purchase.time for purchase in purchases],
            },
            schema={
                "user_id": pl.String,
                "product_id": pl.String,
                "time": pl.Datetime("us", "UTC"),
            },
        )
        history = PurchaseHistory(self.pipeline.spec.history).fit(bought, self._products)
        history_1L = history.transform(pl.Series(["buyer"]), examples.time_us_N[:1])
        return replace(examples, history_NL=np.repeat(history_1L, len(examples), axis=0))

    def _diagnostics(
        self,
        request: ScoreRequest,
        examples: Examples,
        *,
        unknown_query: bool,
        query_vector: QueryVector,
    ) -> Diagnostics:
        ids = [candidate.product_id for candidate in request.candidates]
        known_K = examples.product_N >= 0
        without_K = np.zeros(len(ids), bool)
        if self.vectors is not None:
            without_K = known_K & ~self.vectors.product_present_P[examples.product_N]
        user_K = np.ones(len(ids))
        if request.user_id is not None and "user_id" in examples.sparse_names:
            user_K = examples.sparse_NF[:, examples.sparse_names.index("user_id")]
        return Diagnostics(
            unknown_user=bool(user_K[0] == 0),
            unknown_query=unknown_query,
            unknown_products=tuple(ids[k] for k in np.flatnonzero(~known_K)),
            products_without_vector=tuple(ids[k] for k in np.flatnonzero(without_K)),
            query_vector=query_vector,
            history_length=int((examples.history_NL[0] >= 0).sum()),
        )


def _texts(frame: pl.DataFrame) -> pl.Series:
    """The query texts; an empty one is none."""
    _refuse_unless_text(frame["query"])
    return frame["query"].cast(pl.String).replace("", None)


def _refuse_unless_text(queries: pl.Series) -> None:
    if queries.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise ValueError(f"column 'query' has type {queries.dtype}; it must be text")


def _same_space(encoder: OnnxQueryEncoder, query_store: VectorStore) -> None:
    made_by = query_store.manifest.encoder_fingerprint
    if encoder.settings.encoder_fingerprint != made_by:
        raise ValueError(
            f"the query encoder is {encoder.settings.encoder_fingerprint[:12]}, but the bundle's "
            f"query vectors were made by {made_by[:12]}; encoded queries would be noise"
        )
