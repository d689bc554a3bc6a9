"""A store made smaller, accepted only if it still finds what float32 finds.

``compact_`` encodes, lets queries search both forms exactly, and writes nothing if fewer of the K
closest are kept than the gate asks for.

Shape letters: N vectors of a block, Q queries, S dimensions of the source, D those kept, K
neighbours, B bytes of a code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from embeddings.compact_store import FORMAT, CompactManifest, CompactStore
from embeddings.exact_search import BLOCK_ROWS, Neighbours, retention, search_exactly
from embeddings.store import VectorStore, ids_bytes, publish_, refuse_other_encoder
from embeddings.store_codec import Codec, Form, Ranging, ranges_of

FLOAT16_MAX = 65504.0

MINIMUM_RETENTION: dict[Form, float] = {
    "float32": 1.0,
    "float16": 0.99,
    "int8": 0.97,
    "binary": 0.90,
}
"""Share of the K closest that a form must keep, unless the caller says otherwise."""

MINIMUM_SHORTENED = 0.90
"""The same where dimensions are dropped too, if the form alone need not keep less."""


class FormConfig(BaseModel):
    """A form, and what it must keep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form = "int8"
    dims: int | None = Field(default=None, ge=1)
    """Keep the first so many dimensions, at length 1; all by default. Only vectors that were
    trained for it, or happen to, pass the gate."""
    k: int = Field(default=10, ge=1)
    """How many of the closest are compared."""
    minimum_retention: float | None = Field(default=None, gt=0, le=1)
    """Refuse a form that keeps a smaller share of them; by default .99 for float16, .97 for int8
    and .90 for binary, or for fewer dimensions."""
    queries: int = Field(default=1000, ge=1)
    """How many are drawn, from the queries given or else from the store itself."""
    rescore: int = Field(default=4, ge=1)
    """For binary: so many times K candidates are taken by Hamming distance, and ordered by the
    whole query's product with their bits; 1 leaves Hamming's order."""
    seed: int = 0
    """Draws the queries."""

    @property
    def minimum(self) -> float:
        """The gate."""
        if self.minimum_retention is not None:
            return self.minimum_retention
        usual = MINIMUM_RETENTION[self.form]
        return usual if self.dims is None else min(usual, MINIMUM_SHORTENED)


def compact_(
    store: VectorStore,
    folder: str | Path,
    config: FormConfig | None = None,
    *,
    queries: VectorStore | None = None,
) -> CompactStore:
    """Write a store in a smaller form, if it passes the gate.

    int8 is tried with each way of ranging, and the one that keeps most is written.

    Args:
        store: float32 vectors.
        folder: A compact store there is replaced; any other folder is left alone.
        config: The form and its gate; the defaults if None.
        queries: Query vectors of the same encoder that judge the form; rows of the store itself,
            each without itself, if None.

    Raises:
        ValueError: If the form keeps too little, with what it keeps; if it cannot be made (more
            dimensions than there are, bits of vectors that are not of length 1, float16 of values
            beyond its range); or if ``folder`` exists and is no compact store.
    """
    config, folder = config or FormConfig(), Path(folder)
    if folder.exists() and not (folder / "codes.npy").is_file():
        raise ValueError(f"{folder} exists and is not a compact store; name another folder")
    _refuse_what_has_no_such_form(store, config)
    if queries is not None:
        refuse_other_encoder(store.manifest, queries.manifest)
    judged = _Judges(store, config, queries)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        rangings: tuple[Ranging | None, ...] = (None,)
        if config.form == "int8":
            rangings = get_args(Ranging)
        tried: dict[str, float] = {}
        best: tuple[float, Path] | None = None
        for ranging in rangings:
            candidate = unfinished / (ranging or "codes")
            made = _write_(candidate, store, config, ranging)
            kept_Q = judged.retention(made)
            tried[ranging or config.form] = float(kept_Q.mean())
            if best is None or kept_Q.mean() > best[0]:
                best = (float(kept_Q.mean()), candidate)
                gate = {**judged.said(kept_Q), "minimum": config.minimum, "tried": tried}
        assert best is not None
        if best[0] < config.minimum:
            raise ValueError(_refusal(config, gate))
        manifest_path = best[1] / "manifest.json"
        manifest = {**json.loads(manifest_path.read_text("utf-8")), "gate": gate}
        manifest_path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        publish_(best[1], folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return CompactStore.open(folder)


class _Judges:
    """Queries, and the K closest that float32 finds for each."""

    def __init__(self, store: VectorStore, config: FormConfig, queries: VectorStore | None) -> None:
        self._store = store
        given = store if queries is None else queries
        rng = np.random.default_rng(config.seed)
        row_Q = np.sort(rng.permutation(len(given.ids))[: config.queries])
        query_QS = np.array(given.vectors_VD[row_Q])
        # What is equally far from everything says nothing of order.
        row_Q, self._query_QS = row_Q[query_QS.any(axis=1)], query_QS[query_QS.any(axis=1)]
        if not len(row_Q):
            raise ValueError("no query can judge the form: all that were drawn are zeros")
        self._self_Q = row_Q if queries is None else None
        self._k = min(config.k, len(store.ids) - (queries is None))
        if self._k < 1:
            raise ValueError("a store of one vector has no neighbours to judge a form by")
        self._exact = self._without_self(search_exactly(store, self._query_QS, self._wanted))

    @property
    def _wanted(self) -> int:
        return self._k + (self._self_Q is not None)

    def retention(self, made: CompactStore) -> NDArray[np.float64]:
        """Share of the K closest that a form finds, for each query."""
        found = self._without_self(made.search(self._query_QS, self._wanted))
        return retention(self._store, self._exact, self._query_QS, found.row_QK)

    def said(self, kept_Q: NDArray[np.float64]) -> dict[str, Any]:
        """For the manifest."""
        return {
            "k": self._k,
            "queries": len(kept_Q),
            "queries_from": "the store itself" if self._self_Q is not None else "given queries",
            "retention": float(kept_Q.mean()),
            "standard_error": float(kept_Q.std() / max(len(kept_Q), 1) ** 0.5),
        }

    def _without_self(self, found: Neighbours) -> Neighbours:
        if self._self_Q is None:
            return found
        other_QK = found.row_QK != self._self_Q[:, None]
        # Where a query's own row is not found, equal vectors stand before it: drop the last.
        other_QK[other_QK.all(axis=1), -1] = False
        shape = (len(other_QK), self._k)
        return Neighbours(
            row_QK=found.row_QK[other_QK].reshape(shape),
            score_QK=found.score_QK[other_QK].reshape(shape),
        )


def _write_(
    folder: Path, store: VectorStore, config: FormConfig, ranging: Ranging | None
) -> CompactStore:
    """Write codes block by block, with a manifest that has no gate yet."""
    folder.mkdir()
    dim, source_dim = config.dims or store.dim, store.dim
    plain = Codec(form=config.form, source_dim=source_dim, dim=dim, ranging=ranging)
    range_2D = _ranges(store, plain) if ranging is not None else None
    codec = Codec(
        form=config.form, source_dim=source_dim, dim=dim, ranging=ranging, range_2D=range_2D
    )
    count, sha256 = len(store.ids), hashlib.sha256()
    scales, empty = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    nothing_BB, _ = codec.encode(np.zeros((0, dim), np.float32))
    with (folder / "codes.npy").open("wb") as file:
        layout = {
            "descr": np.lib.format.dtype_to_descr(nothing_BB.dtype),
            "fortran_order": False,
            "shape": (count, nothing_BB.shape[1]),
        }
        np.lib.format.write_array_header_1_0(file, layout)
        for start in range(0, count, BLOCK_ROWS):
            vector_ND = codec.shorten(store.block(start, min(start + BLOCK_ROWS, count)))
            code_NB, scale_N = codec.encode(vector_ND)
            file.write(np.ascontiguousarray(code_NB).data)
            sha256.update(np.ascontiguousarray(code_NB).data)
            scales.append(scale_N if ranging == "per_vector" else scale_N[:0])
            empty.append(start + np.flatnonzero(~vector_ND.any(axis=1)))
    arrays = {
        "scales.npy": np.concatenate(scales),
        "ranges.npy": np.zeros(0, np.float32) if range_2D is None else range_2D,
        "empty.npy": np.concatenate(empty),
    }
    checksums = {"codes.npy": sha256.hexdigest()}
    for name, array in arrays.items():
        np.save(folder / name, array)
        checksums[name] = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    (folder / "ids.json").write_bytes(ids_bytes(store.ids))
    checksums["ids.json"] = store.manifest.ids_sha256
    manifest = CompactManifest(
        format=FORMAT,
        form=config.form,
        ranging=ranging,
        dim=dim,
        source_dim=source_dim,
        source_fingerprint=store.fingerprint,
        kind=store.manifest.kind,
        encoder_fingerprint=store.manifest.encoder_fingerprint,
        data_fingerprint=store.manifest.data_fingerprint,
        preprocessing=store.manifest.preprocessing,
        count=count,
        rescore=config.rescore if config.form == "binary" else 1,
        bytes_per_vector=nothing_BB.shape[1] * nothing_BB.dtype.itemsize
        + (4 if ranging == "per_vector" else 0),
        gate={},
        sha256=checksums,
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    return CompactStore.open(folder)


def _ranges(store: VectorStore, codec: Codec) -> NDArray[np.float32] | None:
    low_D = np.full(codec.dim, np.inf, np.float32)
    high_D = -low_D
    for start in range(0, len(store.ids), BLOCK_ROWS):
        vector_ND = codec.shorten(store.block(start, min(start + BLOCK_ROWS, len(store.ids))))
        low_D = np.minimum(low_D, vector_ND.min(axis=0))
        high_D = np.maximum(high_D, vector_ND.max(axis=0))
    assert codec.ranging is not None
    return ranges_of(low_D, high_D, codec.ranging)


def _refuse_what_has_no_such_form(store: VectorStore, config: FormConfig) -> None:
    if not len(store.ids):
        raise ValueError("the store is empty; there is nothing to make smaller")
    if config.dims is not None and config.dims > store.dim:
        raise ValueError(f"dims={config.dims} must be at most {store.dim}, those of the store")
    shortened = config.dims not in (None, store.dim)
    if config.form == "float32" and not shortened:
        raise ValueError("form='float32' with all dimensions is the store as it is; give dims")
    if (config.form == "binary" or shortened) and not store.manifest.unit_length:
        raise ValueError(
            "bits and fewer dimensions forget lengths, and these vectors are not all of length 1; "
            "normalise them first, or choose float16 or int8"
        )
    if config.form == "float16":
        for start in range(0, len(store.ids), BLOCK_ROWS):
            largest = float(np.abs(store.block(start, start + BLOCK_ROWS)).max())
            if largest > FLOAT16_MAX:
                raise ValueError(f"a value of {largest:.3g} is beyond float16; choose int8")


def _refusal(config: FormConfig, gate: dict[str, Any]) -> str:
    form = config.form + (f" with {config.dims} dimensions" if config.dims else "")
    tried = ", ".join(f"{name} {kept:.4f}" for name, kept in gate["tried"].items())
    return (
        f"{form} keeps {gate['retention']:.4f} (standard error {gate['standard_error']:.4f}) of "
        f"the {gate['k']} closest over {gate['queries']} queries, below the gate of "
        f"{config.minimum} (tried: {tried}); choose a larger form, or set minimum_retention to "
        "what your use can bear"
    )
