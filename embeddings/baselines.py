"""Vectors and scores that cost no training: what DashCLIP's have to beat.

Shape letters: V vectors, D embedding size, N pairs, Q queries, P products.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from embeddings.architecture import RANDOM_TEXT
from embeddings.encoders import TextEncoder, initialise_
from embeddings.initial import load_fitting_tokenizer
from embeddings.model import EMBED_BATCH
from embeddings.precision import choose_precision
from embeddings.pretrained import load_text_, read_text_shape
from embeddings.store import VectorStore
from embeddings.text import product_texts, tokenize
from embeddings.weights import ResolvedWeights, find_text_weights

MAX_TOKENS = 128
"""As in sentence-transformers' all-MiniLM-L6-v2."""


def off_the_shelf_products(
    products: pl.DataFrame,
    *,
    text_columns: Sequence[str] = ("title",),
    weights: ResolvedWeights | None = None,
) -> VectorStore:
    """Embed product texts with the frozen text encoder, as it comes.

    Args:
        products: product_id and text columns.
        text_columns: Columns that make the text, in order.
        weights: From ``find_text_weights``; MiniLM if None.

    Returns:
        A store in memory; unit rows, zeros for products without text.
    """
    weights = weights or find_text_weights()
    texts = product_texts(products, text_columns)
    vector_PD = text_vectors(texts, weights) * np.array([[len(t) > 0] for t in texts])
    return VectorStore.from_arrays(
        products["product_id"].to_list(),
        vector_PD,
        kind="product/off_the_shelf",
        encoder_fingerprint=f"off_the_shelf:{weights.sha256}",
    )


def off_the_shelf_queries(
    queries: pl.DataFrame, *, weights: ResolvedWeights | None = None
) -> VectorStore:
    """Embed query texts with the frozen text encoder, as it comes.

    Args:
        queries: query_id, query.
        weights: From ``find_text_weights``; MiniLM if None.
    """
    weights = weights or find_text_weights()
    return VectorStore.from_arrays(
        queries["query_id"].to_list(),
        text_vectors(queries["query"].to_list(), weights),
        kind="query/off_the_shelf",
        encoder_fingerprint=f"off_the_shelf:{weights.sha256}",
    )


@torch.no_grad()
def text_vectors(texts: Sequence[str], weights: ResolvedWeights) -> NDArray[np.float32]:
    """Unit vectors of texts, (V, D), as sentence-transformers makes them of MiniLM."""
    shape = RANDOM_TEXT if weights.path is None else read_text_shape(weights.path)
    encoder = TextEncoder(shape)
    if weights.path is None:
        initialise_(encoder, torch.Generator().manual_seed(0))
    else:
        load_text_(encoder, weights.path)
    precision = choose_precision(encoder, torch.device("cpu"))
    tokenizer = load_fitting_tokenizer(weights.path, shape)
    tokens = tokenize(tokenizer, texts, min(MAX_TOKENS, shape.positions))
    out_VD = torch.zeros(len(texts), shape.pooled_width)
    for row_B in tokens.by_length(EMBED_BATCH):
        id_BL, attend_BL = tokens.padded(row_B)
        with precision.autocast(id_BL.device):
            pooled_BD = encoder.pool(encoder(id_BL, attend_BL), attend_BL)
        out_VD[row_B] = F.normalize(pooled_BD.float(), dim=1)
    return out_VD.numpy()


def random_vectors(ids: Sequence[str], dim: int, seed: int) -> VectorStore:
    """A placebo: a random unit vector an id, the same for the same id, seed and dimension."""
    vector_VD = np.empty((len(ids), dim), np.float32)
    for row, key in enumerate(ids):
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        vector_VD[row] = rng.standard_normal(dim)
    vector_VD /= np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return VectorStore.from_arrays(
        ids, vector_VD, kind="random", encoder_fingerprint=f"random:{dim}:{seed}"
    )


def shuffled(store: VectorStore, seed: int) -> VectorStore:
    """A placebo: the vectors of a store, each handed to another id at random."""
    order_V = np.random.default_rng(seed).permutation(len(store.ids))
    return VectorStore.from_arrays(
        store.ids,
        np.asarray(store.vectors_VD)[order_V],
        kind=f"{store.manifest.kind}/shuffled",
        encoder_fingerprint=f"shuffled:{seed}:{store.manifest.encoder_fingerprint}",
        data_fingerprint=store.manifest.data_fingerprint,
    )


def tfidf_products(
    products: pl.DataFrame, *, dim: int = 256, text_columns: Sequence[str] = ("title",)
) -> VectorStore:
    """TF-IDF of product texts in the directions that hold most of it, for what needs short vectors.

    Args:
        products: product_id and text columns.
        dim: Directions at most; fewer where the texts have fewer words.
        text_columns: Columns that make the text, in order.

    Source:
        Deerwester et al. 1990, "Indexing by Latent Semantic Analysis".
    """
    texts = product_texts(products, text_columns)
    product_PV = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(texts)
    words = product_PV.shape[1]
    if words > dim:
        vector_PD = TruncatedSVD(dim, random_state=0).fit_transform(product_PV)
    else:
        vector_PD = product_PV.toarray()
    return VectorStore.from_arrays(
        products["product_id"].to_list(),
        vector_PD,
        kind="product/tfidf",
        encoder_fingerprint=f"tfidf:{vector_PD.shape[1]}",
    )


class TfidfScores:
    """Cosine of TF-IDF vectors; ``embeddings.scores.Scores`` for the word-matching baseline."""

    def __init__(
        self,
        products: pl.DataFrame,
        queries: pl.DataFrame,
        *,
        text_columns: Sequence[str] = ("title",),
    ) -> None:
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        self.product_ids = products["product_id"].to_list()
        self._product_PV = csr_array(
            vectorizer.fit_transform(product_texts(products, text_columns))
        )
        self._query_QV = csr_array(vectorizer.transform(queries["query"].to_list()))
        self._query_row = {key: row for row, key in enumerate(queries["query_id"].to_list())}
        self._product_row = {key: row for row, key in enumerate(self.product_ids)}

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with the product beside it, (N,)."""
        query_NV = self._query_QV[[self._query_row[key] for key in query_ids]]
        product_NV = self._product_PV[[self._product_row[key] for key in product_ids]]
        return np.asarray((query_NV * product_NV).sum(axis=1), np.float32).ravel()

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with every product, (Q, P)."""
        query_QV = self._query_QV[[self._query_row[key] for key in query_ids]]
        return np.asarray((query_QV @ self._product_PV.T).todense(), np.float32)
