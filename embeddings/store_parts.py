"""A store of vectors written part by part, so that only one part is ever in memory.

Shape letters: V vectors of a store, N rows of a part, D embedding size.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import FORMAT, Manifest, publish_

Part = tuple[Sequence[str], NDArray[np.float32]]
"""Ids and their vectors, (N, D)."""


def write_parts_(
    folder: str | Path,
    parts: Iterable[Part],
    *,
    count: int,
    dim: int,
    kind: str,
    encoder_fingerprint: str,
    data_fingerprint: str = "",
    preprocessing: Mapping[str, Any] | None = None,
    computation: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a store whose parts come one after the other; whole or not at all.

    The files are to the byte those that ``VectorStore.write_`` makes of all parts together. That
    no id comes twice is for ``refuse_repeats_across``, for it needs no vectors.

    Args:
        folder: A store there is replaced; any other folder is left alone.
        parts: In the order of rows.
        count: Rows of all parts, V.
        dim: Embedding size D.
        kind: As in ``Manifest``, as are the rest.

    Raises:
        ValueError: If a part has another shape, a value is NaN or infinite, the rows are not
            ``count``, or ``folder`` exists and is not a store.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} exists and is not a vector store; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = _write_files_(unfinished, parts, count, dim)
        manifest = Manifest(
            format=FORMAT,
            kind=kind,
            encoder_fingerprint=encoder_fingerprint,
            data_fingerprint=data_fingerprint,
            count=count,
            dim=dim,
            dtype="float32",
            preprocessing=dict(preprocessing or {}),
            computation=dict(computation or {}),
            **written,
        )
        content = json.dumps(asdict(manifest), indent=1)
        (unfinished / "manifest.json").write_text(content, encoding="utf-8")
        publish_(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def refuse_repeats_across(batches: Iterable[Sequence[str]], again: Iterable[Sequence[str]]) -> None:
    """Refuse ids of which one comes twice, in eight bytes of memory an id.

    Args:
        batches: All ids.
        again: The same ids, read only if two of them may be the same.

    Raises:
        ValueError: Naming the id and both rows.
    """
    hashes = [pl.Series("id", list(ids), dtype=pl.String).hash().to_numpy() for ids in batches]
    hash_V = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    suspected = set(hash_V[1:][hash_V[1:] == hash_V[:-1]].tolist())
    if not suspected:
        return
    first: dict[str, int] = {}
    row = 0
    for ids in again:
        marks = pl.Series("id", list(ids), dtype=pl.String).hash().to_list()
        for key, mark in zip(ids, marks, strict=True):
            if mark in suspected:
                if key in first:
                    raise ValueError(
                        f"id {key!r} appears twice, in rows {first[key]} and {row}; every row "
                        "needs an id of its own"
                    )
                first[key] = row
            row += 1


def _write_files_(folder: Path, parts: Iterable[Part], count: int, dim: int) -> dict[str, Any]:
    vectors_sha256, ids_sha256 = hashlib.sha256(), hashlib.sha256()
    unit_length, rows = True, 0
    with (folder / "vectors.npy").open("wb") as vectors, (folder / "ids.json").open("wb") as ids:
        layout = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        np.lib.format.write_array_header_1_0(vectors, layout)
        for key_N, vector_ND in _checked(parts, dim):
            length_N = np.linalg.norm(vector_ND, axis=1)
            unit_length &= bool(np.all((np.abs(length_N - 1) < 1e-3) | (length_N == 0)))
            vectors.write(vector_ND.data)
            vectors_sha256.update(vector_ND.data)
            inside = json.dumps(list(key_N), ensure_ascii=False)[1:-1].encode()
            text = (b", " if rows else b"[") + inside
            ids.write(text)
            ids_sha256.update(text)
            rows += len(key_N)
        end = b"]" if rows else b"[]"
        ids.write(end)
        ids_sha256.update(end)
    if rows != count:
        raise ValueError(f"the parts have {rows} rows, but {count} were announced")
    return {
        "unit_length": unit_length,
        "vectors_sha256": vectors_sha256.hexdigest(),
        "ids_sha256": ids_sha256.hexdigest(),
    }


def _checked(parts: Iterable[Part], dim: int) -> Iterator[Part]:
    row = 0
    for key_N, given_ND in parts:
        vector_ND = np.ascontiguousarray(given_ND, np.float32)
        if vector_ND.shape != (len(key_N), dim):
            raise ValueError(
                f"a part of {len(key_N)} ids has vectors of shape {vector_ND.shape}; "
                f"it must be ({len(key_N)}, {dim})"
            )
        finite_N = np.isfinite(vector_ND).all(axis=1)
        if not finite_N.all():
            at = int(np.argmin(finite_N))
            raise ValueError(
                f"the vector of id {key_N[at]!r} (row {row + at}) holds NaN or infinity; did "
                "training diverge?"
            )
        if len(key_N):
            yield key_N, vector_ND
        row += len(key_N)
