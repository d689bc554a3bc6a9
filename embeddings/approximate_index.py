"""An approximate index over a store (HNSW by usearch), accepted only with a measured recall.

It finds candidates; their scores are computed anew from the store's own vectors, so that what
comes back is ordered and scored as exact search would, and only a neighbour can be missed.

Shape letters: Q queries, D embedding size, K neighbours, N rows added at a time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from embeddings.exact_search import BLOCK_ROWS, Neighbours, retention, search_exactly
from embeddings.store import VectorStore, publish_, refuse_other_encoder
from features.file_sum import file_sha256

if TYPE_CHECKING:
    from usearch.index import Index

FORMAT = "adtower-approximate-index-1"
INDEX = "index.usearch"


class ApproximateConfig(BaseModel):
    """How the graph is built and searched, and what it must find."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["f32", "f16", "i8"] = "f16"
    """Of the copy of the vectors that the graph walks over."""
    connectivity: int = Field(default=16, ge=2)
    """Neighbours of a node (HNSW's M)."""
    expansion_add: int = Field(default=128, ge=1)
    """Candidates kept while a node is added."""
    expansion_search: int = Field(default=128, ge=1)
    """Candidates kept while a query is searched: more find more and take longer."""
    k: int = Field(default=10, ge=1)
    minimum_recall: float = Field(default=0.95, ge=0, le=1)
    """Refuse an index that finds a smaller share of the exact K."""
    queries: int = Field(default=1000, ge=1)
    """How many judge it, drawn from the queries given or else from the store itself."""
    seed: int = 0
    """Draws the queries."""


@dataclass(frozen=True, kw_only=True)
class ApproximateManifest:
    """What an index says about itself."""

    format: str
    store_fingerprint: str
    """Of the store that it was built over; it opens beside no other."""
    count: int
    dim: int
    dtype: str
    connectivity: int
    expansion_add: int
    expansion_search: int
    usearch_version: str
    index_sha256: str
    recall: dict[str, Any]
    """k, queries, where they came from, recall, its standard error, and the minimum."""


class ApproximateIndex:
    """A graph over the vectors of one store."""

    def __init__(self, index: Index, store: VectorStore, manifest: ApproximateManifest) -> None:
        self._index, self._store = index, store
        self.manifest = manifest

    @classmethod
    def build_(
        cls,
        store: VectorStore,
        folder: str | Path,
        config: ApproximateConfig | None = None,
        *,
        queries: VectorStore | None = None,
    ) -> Self:
        """Build an index, measure its recall against exact search, and write it if it suffices.

        On one thread, so that the same store gives the same graph.

        Args:
            store: Vectors, compared by inner product.
            folder: An index there is replaced; any other folder is left alone.
            config: Settings; the defaults if None.
            queries: Query vectors of the same encoder that judge it; rows of the store if None.

        Raises:
            ValueError: If usearch is not installed, the recall is below the gate, the store is
                empty, the queries are another encoder's, or ``folder`` exists and is no index.
        """
        config, folder = config or ApproximateConfig(), Path(folder)
        usearch = _usearch()
        if folder.exists() and not (folder / INDEX).is_file():
            raise ValueError(f"{folder} exists and is not an approximate index; name another")
        if not len(store.ids):
            raise ValueError("the store is empty; there is nothing to index")
        if queries is not None:
            refuse_other_encoder(store.manifest, queries.manifest)
        index = usearch.index.Index(
            ndim=store.dim,
            metric="ip",
            dtype=config.dtype,
            connectivity=config.connectivity,
            expansion_add=config.expansion_add,
            expansion_search=config.expansion_search,
        )
        for start in range(0, len(store.ids), BLOCK_ROWS):
            block_ND = store.block(start, min(start + BLOCK_ROWS, len(store.ids)))
            index.add(np.arange(start, start + len(block_ND)), block_ND, threads=1)
        recall = _measure(index, store, queries or store, config)
        recall["queries_from"] = "the store itself" if queries is None else "given queries"
        if recall["recall"] < config.minimum_recall:
            raise ValueError(
                f"the index finds {recall['recall']:.4f} (standard error "
                f"{recall['standard_error']:.4f}) of the exact {recall['k']} over "
                f"{recall['queries']} queries, below the gate of {config.minimum_recall}; raise "
                f"expansion_search (now {config.expansion_search}) or connectivity (now "
                f"{config.connectivity}), or choose dtype f32"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            index.save(str(unfinished / INDEX))
            manifest = ApproximateManifest(
                format=FORMAT,
                store_fingerprint=store.fingerprint,
                count=len(store.ids),
                dim=store.dim,
                dtype=config.dtype,
                connectivity=config.connectivity,
                expansion_add=config.expansion_add,
                expansion_search=config.expansion_search,
                usearch_version=usearch.__version__,
                index_sha256=file_sha256(unfinished / INDEX),
                recall=recall,
            )
            content = json.dumps(asdict(manifest), indent=1)
            (unfinished / "manifest.json").write_text(content, encoding="utf-8")
            publish_(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.open(folder, store)

    @classmethod
    def open(cls, folder: str | Path, store: VectorStore) -> Self:
        """Open an index beside the store that it was built over.

        Raises:
            ValueError: If the folder is no index, its file was damaged, it belongs to another
                store, or usearch is not installed.
        """
        folder, usearch = Path(folder), _usearch()
        try:
            manifest = ApproximateManifest(
                **json.loads((folder / "manifest.json").read_text("utf-8"))
            )
        except (TypeError, json.JSONDecodeError, FileNotFoundError) as error:
            raise ValueError(f"{folder} holds no sound approximate index: {error}") from error
        if manifest.format != FORMAT:
            raise ValueError(f"{folder} has format {manifest.format!r}; this reader knows {FORMAT}")
        if manifest.store_fingerprint != store.fingerprint:
            raise ValueError(
                f"{folder} was built over store {manifest.store_fingerprint[:12]}, not over this "
                f"one ({store.fingerprint[:12]}); was the catalogue embedded again? Build the "
                "index again"
            )
        if not (folder / INDEX).is_file() or file_sha256(folder / INDEX) != manifest.index_sha256:
            raise ValueError(
                f"{folder / INDEX} does not have the SHA-256 of its manifest: it was damaged or "
                "replaced; build the index again"
            )
        index = usearch.index.Index.restore(str(folder / INDEX), view=True)
        index.expansion_search = manifest.expansion_search
        return cls(index, store, manifest)

    def search(self, query_QD: NDArray[np.floating], k: int) -> Neighbours:
        """Find about the K rows that score highest with each query, the closest first.

        Where the graph leads to fewer, the last rows are -1 with a score of minus infinity.

        Args:
            query_QD: Finite queries of the store's encoder.
            k: How many; all where the store has fewer.

        Raises:
            ValueError: If queries have another size or are not finite, or ``k`` is below 1.
        """
        query_QD = np.asarray(query_QD, np.float32)
        if query_QD.ndim != 2 or query_QD.shape[1] != self._store.dim or k < 1:
            raise ValueError(
                f"queries of shape {query_QD.shape} and k={k}: queries must be rows of "
                f"{self._store.dim} values, and k at least 1"
            )
        if not np.isfinite(query_QD).all():
            raise ValueError("a query holds NaN or infinity")
        return _search(self._index, self._store, query_QD, k)


def _search(index: Any, store: VectorStore, query_QD: NDArray[np.float32], k: int) -> Neighbours:
    kept = min(k, len(store.ids))
    row_QK = np.full((len(query_QD), kept), -1, np.int64)
    score_QK = np.full((len(query_QD), kept), -np.inf, np.float32)
    for at in range(len(query_QD)):
        found = index.search(query_QD[at], kept, threads=1)
        row_K = np.asarray(found.keys, np.int64)
        vector_KD = np.asarray(store.vectors_VD[row_K], np.float64)
        score_K = (vector_KD @ query_QD[at].astype(np.float64)).astype(np.float32)
        order_K = sorted(range(len(row_K)), key=lambda j: (-score_K[j], store.ids[row_K[j]]))
        row_QK[at, : len(row_K)], score_QK[at, : len(row_K)] = row_K[order_K], score_K[order_K]
    return Neighbours(row_QK=row_QK, score_QK=score_QK)


def _measure(
    index: Any, store: VectorStore, queries: VectorStore, config: ApproximateConfig
) -> dict[str, Any]:
    rng = np.random.default_rng(config.seed)
    row_Q = np.sort(rng.permutation(len(queries.ids))[: config.queries])
    query_QD = np.array(queries.vectors_VD[row_Q])
    query_QD = query_QD[query_QD.any(axis=1)]
    if not len(query_QD):
        raise ValueError("no query can judge the index: all that were drawn are zeros")
    k = min(config.k, len(store.ids))
    exact = search_exactly(store, query_QD, k)
    kept_Q = retention(store, exact, query_QD, _search(index, store, query_QD, k).row_QK)
    return {
        "k": k,
        "queries": len(query_QD),
        "recall": float(kept_Q.mean()),
        "standard_error": float(kept_Q.std() / len(kept_Q) ** 0.5),
        "minimum": config.minimum_recall,
    }


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise ValueError(
            "the package usearch is not installed; approximate search needs the extra: "
            "pip install 'adtower[index]'"
        ) from error
    return usearch
