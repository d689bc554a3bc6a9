"""Vectors in a smaller form, looked up and searched like the store that they were made from.

A compact store is a folder of codes.npy, scales.npy, ranges.npy, empty.npy (rows of zeros),
ids.json and manifest.json, which carries the figures of the gate that the form passed. Only
``store_forms`` writes one.

Shape letters: V vectors of a store, N of a block, Q queries, S dimensions of the source, D those
kept, K neighbours, R candidates, B bytes of a code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embeddings.exact_search import Neighbours, search_exactly
from embeddings.store import refuse_damage
from embeddings.store_codec import Codec, Form, Ranging, hamming, pack

FORMAT = "adtower-compact-vectors-1"


@dataclass(frozen=True, kw_only=True)
class CompactManifest:
    """What a compact store says about its vectors."""

    format: str
    form: Form
    ranging: Ranging | None
    dim: int
    source_dim: int
    source_fingerprint: str
    """Of the float32 store that it was made from."""
    kind: str
    encoder_fingerprint: str
    data_fingerprint: str
    preprocessing: dict[str, Any]
    count: int
    rescore: int
    bytes_per_vector: int
    gate: dict[str, Any]
    """k, queries, where they came from, retention, its standard error, the minimum, and the
    retention of every ranging that was tried."""
    sha256: dict[str, str]
    """Of the arrays and ids by name of file."""


class CompactStore:
    """Read-only vectors of a smaller form; a ``VectorTable`` and an ``exact_search.Searchable``."""

    def __init__(
        self,
        ids: Sequence[str],
        codec: Codec,
        code_VB: NDArray,
        scale_V: NDArray[np.float32],
        empty: NDArray[np.int64],
        manifest: CompactManifest,
    ) -> None:
        self.ids = tuple(ids)
        self.codec = codec
        self.code_VB = code_VB
        self.manifest = manifest
        self._scale_V, self._empty = scale_V, empty
        self._row_by_id = {key: row for row, key in enumerate(self.ids)}

    @classmethod
    def open(cls, folder: str | Path, expect_fingerprint: str | None = None) -> Self:
        """Open a compact store, its codes memory-mapped.

        Args:
            folder: Where ``compact_`` put it.
            expect_fingerprint: Refuse unless this is the fingerprint of the store, of the store
                it was made from, or of the encoder.

        Raises:
            ValueError: If the folder is no compact store, a file was damaged, or other vectors
                were expected.
        """
        folder = Path(folder)
        try:
            said = json.loads((folder / "manifest.json").read_text("utf-8"))
            if said.get("format") != FORMAT:
                raise ValueError(
                    f"{folder} has format {said.get('format')!r}; this reader knows {FORMAT}"
                )
            manifest = CompactManifest(**said)
        except (TypeError, json.JSONDecodeError, FileNotFoundError) as error:
            raise ValueError(f"{folder} holds no sound compact store: {error}") from error
        arrays: dict[str, NDArray] = {}
        for name in ("codes", "scales", "ranges", "empty"):
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
            refuse_damage(path, arrays[name], manifest.sha256[path.name])
        content = (folder / "ids.json").read_bytes()
        refuse_damage(folder / "ids.json", content, manifest.sha256["ids.json"])
        codec = Codec(
            form=manifest.form,
            source_dim=manifest.source_dim,
            dim=manifest.dim,
            ranging=manifest.ranging,
            range_2D=np.asarray(arrays["ranges"]) if len(arrays["ranges"]) else None,
        )
        store = cls(
            json.loads(content),
            codec,
            arrays["codes"],
            np.asarray(arrays["scales"]),
            np.asarray(arrays["empty"]),
            manifest,
        )
        known = (store.fingerprint, manifest.source_fingerprint, manifest.encoder_fingerprint)
        if expect_fingerprint not in (None, *known):
            raise ValueError(
                f"{folder} holds vectors {store.fingerprint[:12]} of encoder "
                f"{manifest.encoder_fingerprint[:12]}, made from store "
                f"{manifest.source_fingerprint[:12]}, but {expect_fingerprint[:12]} was expected"
            )
        return store

    @property
    def dim(self) -> int:
        """Dimensions kept, D."""
        return self.manifest.dim

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that changes with any id, code or encoder of the store."""
        content = json.dumps(asdict(self.manifest), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def vectors_VD(self) -> NDArray[np.float32]:
        """All vectors, decoded to float32 in memory."""
        return self.block(0, len(self.ids))

    def row_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return each id's row, or -1 where the id is unknown, shape (N,)."""
        lookup = self._row_by_id
        return np.fromiter((lookup.get(key, -1) for key in ids), np.int64, count=len(ids))

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """The vectors of the rows ``start`` to ``stop - 1``, decoded."""
        vector_ND = self.codec.decode(
            np.asarray(self.code_VB[start:stop]), self._scale_V[start:stop]
        )
        vector_ND[self._empty_within(start, stop)] = 0
        return vector_ND

    def scores(self, query_QD: NDArray[np.floating], start: int, stop: int) -> NDArray[np.float32]:
        """Inner product of shortened queries with the decoded rows, (Q, N)."""
        block_ND = self.block(start, stop).astype(np.float64)
        return (query_QD.astype(np.float64) @ block_ND.T).astype(np.float32)

    def search(self, query_QS: NDArray[np.floating], k: int) -> Neighbours:
        """Find the K closest rows of each query, (Q, K), as the gate judged this form.

        Args:
            query_QS: Queries as the encoder makes them, of the source's dimensions.
            k: How many.

        Raises:
            ValueError: If queries have another size, or ``k`` is below 1.
        """
        query_QD = self.codec.shorten(query_QS)
        if self.manifest.form != "binary":
            return search_exactly(self, query_QD, k)
        rescore = self.manifest.rescore
        close = search_exactly(_ByHamming(self), query_QD, k * rescore)
        if rescore == 1:
            return close
        found_QK = np.empty((len(query_QD), min(k, len(self.ids))), np.int64)
        score_QK = np.empty(found_QK.shape, np.float32)
        for at, row_R in enumerate(close.row_QK):
            among = _Rows(self, row_R)
            best = search_exactly(among, query_QD[at : at + 1], k)
            found_QK[at], score_QK[at] = row_R[best.row_QK[0]], best.score_QK[0]
        return Neighbours(row_QK=found_QK, score_QK=score_QK)

    def _empty_within(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._empty[(self._empty >= start) & (self._empty < stop)] - start


@dataclass(frozen=True)
class _ByHamming:
    """A binary store as Hamming distance orders it."""

    store: CompactStore

    @property
    def ids(self) -> Sequence[str]:
        return self.store.ids

    def scores(self, query_QD: NDArray[np.floating], start: int, stop: int) -> NDArray[np.float32]:
        """Cosine of the bits: 1 where all agree, 0 where half do; 0 for rows of zeros."""
        code_NB = np.asarray(self.store.code_VB[start:stop])
        differing_QN = hamming(pack(query_QD > 0), code_NB)
        score_QN = (1 - 2 * differing_QN / self.store.dim).astype(np.float32)
        score_QN[:, self.store._empty_within(start, stop)] = 0
        return score_QN


class _Rows:
    """Some rows of a store."""

    def __init__(self, store: CompactStore, row_R: NDArray[np.int64]) -> None:
        self.ids = [store.ids[row] for row in row_R.tolist()]
        self._vector_RD = np.concatenate([store.block(row, row + 1) for row in row_R.tolist()])

    def scores(self, query_QD: NDArray[np.floating], start: int, stop: int) -> NDArray[np.float32]:
        block_ND = self._vector_RD[start:stop].astype(np.float64)
        return (query_QD.astype(np.float64) @ block_ND.T).astype(np.float32)
