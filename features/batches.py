"""Examples on disk, shuffled once, and read in batches through the page cache.

Each part (train, validation, test) is a folder of ``.npy`` files, one an array of ``Examples``,
mapped into memory instead of read: a part larger than memory trains as one that fits. Rows of
``train`` lie in an order drawn once; every epoch draws the order of short runs of rows, so that a
batch is many small reads that follow each other.

Shape letters: N rows of a part, B rows of a batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.examples import Examples
from features.permutation import Permutation

FORMAT = 1
MANIFEST_FILE = "manifest.json"
PARTS = ("train", "validation", "test")

ARRAYS = (
    *("sparse_NF", "dense_NC", "product_N", "query_N", "history_NL"),
    *("user_N", "request_N", "time_us_N", "label_N", "purchased_N"),
)
"""Arrays of ``Examples``, a file each; ``purchased_N`` is absent where purchases are unknown."""

RUN_ROWS = 64
"""Rows that stay together in every epoch: some pages of each array, read in one go."""

AHEAD_RUNS = 4096
"""Places of an epoch's order that are drawn at once; for a few a draw costs nearly as much."""


class FeatureArrays:
    """The arrays that ``adtower features build`` wrote.

    Use ``FeatureArrays.open``.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path, *, features: str | None = None) -> Self:
        """Open a folder of arrays; nothing is read yet.

        Args:
            folder: What ``adtower features build`` wrote.
            features: The fingerprint of the pipeline that rows are scored by, if it must agree.

        Raises:
            ValueError: If it is no such folder, its arrays do not fit together, or its features
                have another fingerprint.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no built features: {MANIFEST_FILE} is missing; was "
                "`adtower features build` interrupted? Repeat it, it resumes"
            )
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}; "
                "build the features again"
            )
        if features is not None and features != manifest["features"]:
            raise ValueError(
                f"{folder} was built by features {manifest['features'][:12]}, and "
                f"{features[:12]} are wanted: a feature was renamed or fitted anew between "
                "training and scoring"
            )
        arrays = cls(folder, manifest)
        for part in PARTS:
            arrays.refuse_unequal(part)
        return arrays

    def rows(self, part: str) -> int:
        """Return the rows of a part."""
        return self.manifest["rows"][part]

    def array(self, part: str, name: str) -> NDArray[Any]:
        """Return an array of a part, mapped into memory."""
        # Copy on write: torch takes arrays as they are only if they could be written to.
        return np.load(self.folder / part / f"{name}.npy", mmap_mode="c", allow_pickle=False)

    def examples(self, part: str) -> Examples:
        """Return a part as ``Examples`` whose large arrays stay on disk until they are read.

        Users and requests are numbered anew, in the order of their codes.
        """
        arrays = {name: self.array(part, name) for name in ARRAYS if self._has(part, name)}
        for name in ("user_N", "request_N"):
            arrays[name] = np.unique(arrays[name], return_inverse=True)[1].astype(np.int64)
        return Examples(
            sparse_names=tuple(self.manifest["sparse_names"]),
            vocabulary_sizes=tuple(self.manifest["vocabulary_sizes"]),
            dense_names=tuple(self.manifest["dense_names"]),
            **arrays,
        )

    def refuse_unequal(self, part: str) -> None:
        """Refuse arrays that do not have the rows and columns that the manifest says.

        Raises:
            ValueError: Naming the array.
        """
        width = {
            "sparse_NF": len(self.manifest["sparse_names"]),
            "dense_NC": len(self.manifest["dense_names"]),
            "history_NL": self.manifest["history_length"],
        }
        for name in ARRAYS:
            if not self._has(part, name):
                if name != "purchased_N":
                    raise ValueError(f"{self.folder / part} lacks {name}.npy; build it again")
                continue
            shape = self.array(part, name).shape
            if shape[0] != self.rows(part):
                raise ValueError(
                    f"{part}/{name} has {shape[0]} rows and the manifest says {self.rows(part)}: "
                    "the arrays have unequal numbers of rows; build them again"
                )
            if name in width and shape[1] != width[name]:
                cap = "its cap" if name == "history_NL" else "the names"
                raise ValueError(
                    f"{part}/{name} is {shape[1]} wide, and {cap} in the manifest "
                    f"{width[name]}; build it again"
                )

    def _has(self, part: str, name: str) -> bool:
        return (self.folder / part / f"{name}.npy").is_file()


class Feed:
    """Batches of a part in the order of an epoch.

    Args:
        arrays: What was built.
        part: Which rows.
        batch_rows: B; the last batch of an epoch is shorter.
        seed: Of the order.
        names: The arrays handed out; all by default.
        shuffled: False hands rows out as they lie.

    Raises:
        ValueError: If ``batch_rows`` is below 1 or the part does not exist.
    """

    def __init__(
        self,
        arrays: FeatureArrays,
        part: str = "train",
        *,
        batch_rows: int,
        seed: int = 0,
        names: tuple[str, ...] = ARRAYS,
        shuffled: bool = True,
    ) -> None:
        if part not in PARTS:
            raise ValueError(f"part is {part!r}; must be one of {', '.join(PARTS)}")
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}; must be 1 or more")
        self.rows, self.batch_rows, self.seed = arrays.rows(part), batch_rows, seed
        self.shuffled = shuffled
        # Plain arrays: a memmap's own class is slower to index.
        self._arrays = {n: np.asarray(arrays.array(part, n)) for n in names if arrays._has(part, n)}
        self._runs = self.rows // RUN_ROWS
        self._ahead: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, np.int64))
        """An epoch, a place in its order, and the runs from there on."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-self.rows // self.batch_rows)

    def batch(self, rows: slice, *, epoch: int = 0) -> dict[str, NDArray[Any]]:
        """Return the rows that stand at the places ``rows`` of an epoch's order, by array."""
        start, stop, _ = rows.indices(self.rows)
        if not self.shuffled:
            return {name: array[start:stop] for name, array in self._arrays.items()}
        first, last = start // RUN_ROWS, min(-(-stop // RUN_ROWS), self._runs)
        runs = self._runs_at(first, last, epoch)
        within = slice(start - first * RUN_ROWS, stop - first * RUN_ROWS)
        out = {}
        for name, array in self._arrays.items():
            block = (RUN_ROWS, *array.shape[1:])
            # Whole runs are copied as blocks; the rows after the last whole run stay at the end.
            whole = array[: self._runs * RUN_ROWS].reshape(self._runs, math.prod(block))
            taken = whole.take(runs, axis=0).reshape(len(runs) * RUN_ROWS, *array.shape[1:])
            if stop > self._runs * RUN_ROWS:
                taken = np.concatenate([taken, array[self._runs * RUN_ROWS :]])
            out[name] = taken[within]
        return out

    def _runs_at(self, first: int, last: int, epoch: int) -> NDArray[np.int64]:
        """The runs that stand at these places of an epoch's order; many are drawn in one go."""
        drawn_for, start, ahead = self._ahead
        if drawn_for != epoch or first < start or last > start + len(ahead):
            start, stop = first, max(last, min(first + AHEAD_RUNS, self._runs))
            ahead = Permutation(self._runs, seed=self.seed, epoch=epoch).at(np.arange(start, stop))
            self._ahead = (epoch, start, ahead)
        return ahead[first - start : last - start]

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the batches of an epoch, from ``first_batch`` on: so a run resumes."""
        for start in range(first_batch * self.batch_rows, self.rows, self.batch_rows):
            yield self.batch(slice(start, start + self.batch_rows), epoch=epoch)
