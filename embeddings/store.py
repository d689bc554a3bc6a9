"""Vectors by id, on disk and memory-mapped, with a manifest that says where they came from.

A store is a folder of ``vectors.npy``, ``ids.json`` and ``manifest.json``. Opening one compares the
SHA-256 of both files with the manifest before a value is used: a flipped bit loads without a
murmur otherwise. ``store_parts`` writes stores that do not fit in memory, ``store_forms`` smaller
ones.

Shape letters: V vectors of a store, D embedding size, N ids looked up or rows of a block, Q
queries.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

FORMAT = "adtower-vectors-1"

OF_ONE_SIDE = ("max_tokens", "columns", "mode")
"""Preprocessing that products and queries of one encoder have each for themselves."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store says about its vectors."""

    format: str
    """Version of this layout."""
    kind: str
    """What was embedded and how, such as ``product/multimodal``."""
    encoder_fingerprint: str
    """Names the model that made the vectors."""
    data_fingerprint: str
    """Names the table that was embedded; empty where nobody said."""
    count: int
    dim: int
    dtype: str
    unit_length: bool
    """Whether every row has length 1 (rows of zeros aside)."""
    vectors_sha256: str
    ids_sha256: str
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """What was done to the input on its way, such as tokenizer, max_tokens, pooling."""
    computation: dict[str, Any] = field(default_factory=dict)
    """What rounding depends on: precision, threads, batching. No part of what a vector means."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        said = asdict(self)
        for name in ("preprocessing", "computation"):
            # What says nothing changes nothing: older stores keep their names.
            if not said[name]:
                del said[name]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Encoded(Protocol):
    """A store as far as it says who made it."""

    @property
    def kind(self) -> str:
        """What was embedded and how."""
        ...

    @property
    def encoder_fingerprint(self) -> str:
        """Names the model that made the vectors."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What was done to the input on its way."""
        ...


class VectorStore:
    """Read-only vectors looked up by id; a ``features.embedding_join.VectorTable``."""

    def __init__(
        self, ids: Sequence[str], vectors_VD: NDArray[np.float32], manifest: Manifest
    ) -> None:
        self.ids = tuple(ids)
        self.vectors_VD = vectors_VD
        self.manifest = manifest
        self._row_by_id = {key: row for row, key in enumerate(self.ids)}

    @classmethod
    def from_arrays(
        cls,
        ids: Sequence[str],
        vectors_VD: NDArray[np.floating],
        *,
        kind: str,
        encoder_fingerprint: str,
        data_fingerprint: str = "",
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Self:
        """Hold vectors in memory, checked as strictly as those on disk.

        Args:
            ids: One distinct id a row.
            vectors_VD: Finite vectors, shape (V, D); kept as float32.
            kind: What was embedded and how, such as ``product/multimodal``.
            encoder_fingerprint: Names the model that made them.
            data_fingerprint: Names the table that was embedded.
            preprocessing: See ``Manifest``.

        Raises:
            ValueError: If shapes disagree, an id repeats, or a value is NaN or infinite.
        """
        vectors_VD = np.ascontiguousarray(vectors_VD, np.float32)
        if vectors_VD.ndim != 2 or len(ids) != len(vectors_VD):
            raise ValueError(
                f"{len(ids)} ids go with vectors of shape {vectors_VD.shape}; "
                "there must be one row an id"
            )
        _refuse_repeats(ids)
        finite_V = np.isfinite(vectors_VD).all(axis=1)
        if not finite_V.all():
            row = int(np.argmin(finite_V))
            raise ValueError(
                f"the vector of id {ids[row]!r} (row {row}) holds NaN or infinity; "
                "did training diverge?"
            )
        length_V = np.linalg.norm(vectors_VD, axis=1)
        manifest = Manifest(
            format=FORMAT,
            kind=kind,
            encoder_fingerprint=encoder_fingerprint,
            data_fingerprint=data_fingerprint,
            count=len(ids),
            dim=vectors_VD.shape[1],
            dtype="float32",
            unit_length=bool(np.all((np.abs(length_V - 1) < 1e-3) | (length_V == 0))),
            vectors_sha256=hashlib.sha256(vectors_VD.tobytes()).hexdigest(),
            ids_sha256=hashlib.sha256(ids_bytes(ids)).hexdigest(),
            preprocessing=dict(preprocessing or {}),
        )
        return cls(ids, vectors_VD, manifest)

    @classmethod
    def write_(
        cls,
        folder: str | Path,
        ids: Sequence[str],
        vectors_VD: NDArray[np.floating],
        *,
        kind: str,
        encoder_fingerprint: str,
        data_fingerprint: str = "",
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write a store, whole or not at all, and open it.

        An existing store at ``folder`` is replaced; any other folder there is left alone.

        Raises:
            ValueError: As ``from_arrays``, or if ``folder`` exists and is not a store.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise ValueError(f"{folder} exists and is not a vector store; name another folder")
        store = cls.from_arrays(
            ids,
            vectors_VD,
            kind=kind,
            encoder_fingerprint=encoder_fingerprint,
            data_fingerprint=data_fingerprint,
            preprocessing=preprocessing,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            np.save(unfinished / "vectors.npy", store.vectors_VD)
            (unfinished / "ids.json").write_bytes(ids_bytes(ids))
            (unfinished / "manifest.json").write_text(
                json.dumps(asdict(store.manifest), indent=1), encoding="utf-8"
            )
            publish_(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, expect_fingerprint: str | None = None) -> Self:
        """Open a store, memory-mapped.

        Args:
            folder: Where ``write_`` put it.
            expect_fingerprint: Refuse unless this is the store's ``fingerprint`` or the
                fingerprint of the encoder that made it.

        Raises:
            ValueError: If the folder is no store, a file was damaged, or other vectors were
                expected.
        """
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"{folder} has no manifest.json, so it is not a vector store")
        try:
            manifest = Manifest(**json.loads((folder / "manifest.json").read_text("utf-8")))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder}/manifest.json is damaged: {error}") from error
        if manifest.format != FORMAT:
            raise ValueError(f"{folder} has format {manifest.format!r}; this reader knows {FORMAT}")
        ids_bytes = (folder / "ids.json").read_bytes()
        refuse_damage(folder / "ids.json", ids_bytes, manifest.ids_sha256)
        try:
            vectors_VD = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{folder}/vectors.npy cannot be read: {error}") from error
        refuse_damage(folder / "vectors.npy", vectors_VD, manifest.vectors_sha256)
        ids = json.loads(ids_bytes)
        if vectors_VD.shape != (manifest.count, manifest.dim) or len(ids) != manifest.count:
            raise ValueError(
                f"{folder} holds {len(ids)} ids and vectors of shape {vectors_VD.shape}, but its "
                f"manifest says ({manifest.count}, {manifest.dim}); write the store again"
            )
        store = cls(ids, vectors_VD, manifest)
        if expect_fingerprint not in (None, store.fingerprint, manifest.encoder_fingerprint):
            raise ValueError(
                f"{folder} holds vectors {store.fingerprint[:12]} of encoder "
                f"{manifest.encoder_fingerprint[:12]}, but {expect_fingerprint[:12]} was expected; "
                "were the products embedded again after the click model was trained?"
            )
        return store

    @property
    def dim(self) -> int:
        """The embedding size D."""
        return self.manifest.dim

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes with any id, value or encoder of the store."""
        return self.manifest.fingerprint

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """The vectors of the rows ``start`` to ``stop - 1``."""
        return np.asarray(self.vectors_VD[start:stop])

    def scores(self, query_QD: NDArray[np.floating], start: int, stop: int) -> NDArray[np.float32]:
        """Inner product of queries with the rows ``start`` to ``stop - 1``, (Q, N).

        Summed in float64, so that two equal vectors score the same wherever blocks begin.
        """
        block_ND = self.block(start, stop).astype(np.float64)
        return (query_QD.astype(np.float64) @ block_ND.T).astype(np.float32)

    def row_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return each id's row, or -1 where the id is unknown, shape (N,)."""
        lookup = self._row_by_id
        return np.fromiter((lookup.get(key, -1) for key in ids), np.int64, count=len(ids))

    def to_parquet_(self, path: str | Path) -> Path:
        """Write the store as a parquet table: id, vector (a list of D floats).

        The manifest goes along as the file's metadata, and ``from_parquet`` reads both back.
        """
        path = Path(path)
        table = pl.DataFrame(
            {"id": list(self.ids), "vector": np.asarray(self.vectors_VD)},
            schema={"id": pl.String, "vector": pl.Array(pl.Float32, self.dim)},
        )
        unfinished = path.with_name(f".{path.name}.part")
        table.write_parquet(unfinished, metadata={FORMAT: json.dumps(asdict(self.manifest))})
        unfinished.replace(path)
        return path

    @classmethod
    def from_parquet(
        cls, path: str | Path, *, kind: str | None = None, encoder_fingerprint: str | None = None
    ) -> Self:
        """Read a store in memory from a parquet table with the columns id and vector.

        Args:
            path: The file. One that ``to_parquet_`` wrote brings its manifest; the vectors must
                then be the ones it was written with.
            kind: What was embedded, for a table from elsewhere.
            encoder_fingerprint: What made the vectors, for a table from elsewhere.

        Raises:
            ValueError: If a column is missing, the vectors differ in length, the values are not
                those of the manifest, or nothing says what made them.
        """
        table = pl.read_parquet(path)
        if not {"id", "vector"} <= set(table.columns):
            raise ValueError(f"{path} needs the columns id and vector; it has {table.columns}")
        said = pl.read_parquet_metadata(path).get(FORMAT)
        manifest = None if said is None else Manifest(**json.loads(said))
        if manifest is None and (kind is None or encoder_fingerprint is None):
            raise ValueError(
                f"{path} does not say what made its vectors; give kind and encoder_fingerprint"
            )
        vectors = table["vector"]
        if vectors.dtype.base_type() == pl.List:
            lengths = vectors.list.len().unique()
            if len(lengths) > 1:
                raise ValueError(f"{path} has vectors of different lengths: {sorted(lengths)}")
            vectors = vectors.list.to_array(int(lengths[0]) if len(lengths) else 0)
        store = cls.from_arrays(
            table["id"].cast(pl.String).to_list(),
            vectors.to_numpy(),
            kind=manifest.kind if kind is None and manifest else str(kind),
            encoder_fingerprint=manifest.encoder_fingerprint
            if encoder_fingerprint is None and manifest
            else str(encoder_fingerprint),
        )
        if manifest is None:
            return store
        for name in ("vectors_sha256", "ids_sha256", "kind", "encoder_fingerprint"):
            if getattr(store.manifest, name) != getattr(manifest, name):
                raise ValueError(
                    f"{path} does not have the {name} of the manifest that it carries: was the "
                    "table changed after it was written?"
                )
        return cls(store.ids, store.vectors_VD, manifest)


def refuse_other_encoder(one: Encoded, other: Encoded) -> None:
    """Refuse vectors that do not lie in one space.

    Args:
        one: Manifest of a store.
        other: Manifest of the store that is to be compared with it.

    Raises:
        ValueError: If different encoders made them, or one encoder after different preprocessing
            (limits on length aside, which products and queries have each for themselves).
    """
    if one.encoder_fingerprint != other.encoder_fingerprint:
        raise ValueError(
            f"{one.kind} vectors come from encoder {one.encoder_fingerprint[:24]} and {other.kind} "
            f"vectors from {other.encoder_fingerprint[:24]}; their cosines mean nothing. Embed "
            "both with one model"
        )
    mine, theirs = one.preprocessing, other.preprocessing
    same_side = one.kind.split("/")[0] == other.kind.split("/")[0]
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name] and (same_side or name not in OF_ONE_SIDE):
            raise ValueError(
                f"{one.kind} vectors were made with {name}={mine[name]!r} and {other.kind} vectors "
                f"with {name}={theirs[name]!r}; embed both in the same way"
            )


def publish_(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its final name, after its bytes have reached the disk."""
    for file in unfinished.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.rename(old / "old")
        unfinished.rename(folder)
        shutil.rmtree(old)
    else:
        unfinished.rename(folder)
    folder.chmod(0o755)


def ids_bytes(ids: Sequence[str]) -> bytes:
    """Ids as ids.json holds them."""
    return json.dumps(list(ids), ensure_ascii=False).encode()


def refuse_damage(path: Path, content: bytes | NDArray[Any], expected: str) -> None:
    """Refuse a file whose content does not have the SHA-256 of its manifest.

    Raises:
        ValueError: Naming the file.
    """
    raw = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    if hashlib.sha256(raw).hexdigest() != expected:
        raise ValueError(
            f"{path} does not have the SHA-256 of its manifest: the file was damaged or replaced; "
            "write the store again"
        )


def _refuse_repeats(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, key in enumerate(ids):
        if key in seen:
            raise ValueError(f"id {key!r} appears twice (second time in row {row})")
        seen.add(key)
