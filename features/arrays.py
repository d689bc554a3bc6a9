"""Examples on disk, shuffled once, and read through the page cache.

Each part (train, validation, test) is a folder of ``.npy`` files, one an array of ``Examples``,
mapped into memory instead of read: a part larger than memory trains as one that fits. Rows of
``train`` lie in an order drawn once; every epoch draws the order of short runs of rows
(``ranking.epoch_order``), so that a batch is many small reads that follow each other.

Shape letters: N rows of a part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from features.examples import Examples

if TYPE_CHECKING:
    from features.dataset import Dataset

FORMAT = 2
MANIFEST_FILE = "manifest.json"
FEATURES = "features"
"""Folder of the fitted pipeline, beside those of the parts."""
PARTS = ("train", "validation", "test")

ARRAYS = (
    *("sparse_NF", "dense_NC", "product_N", "query_N", "history_NL"),
    *("user_N", "request_N", "time_us_N", "label_N"),
    *("purchased_N", "position_N", "weight_N"),
)
"""Arrays of ``Examples``, a file each."""

OPTIONAL = ("purchased_N", "position_N", "weight_N")
"""Absent where the log has no such column."""

DECISIVE = ("features", "history", "split")
"""Tables of ``dataset.toml`` that decide what the arrays hold."""

RUN_ROWS = 64
"""Rows that stay together in every epoch: some pages of each array, read in one go."""


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

    def refuse_unlike(self, dataset: Dataset, *, min_count: int) -> None:
        """Refuse arrays that were built from other data, or told otherwise, than is said now.

        Args:
            dataset: What a model is to be trained on.
            min_count: See ``Vocabulary``.

        Raises:
            ValueError: Naming what differs.
        """
        again = f"build them again with `adtower features build --data {dataset.folder}`"
        if self.manifest["data"] != dataset.fingerprint():
            raise ValueError(
                f"{self.folder} was built from other tables than those of {dataset.spec.name!r}; "
                f"{again}"
            )
        now = dataset.spec.model_dump(mode="json", include=set(DECISIVE))
        changed = [f"[{name}]" for name in DECISIVE if now[name] != self.manifest["spec"][name]]
        if changed:
            raise ValueError(
                f"{self.folder} was built by another dataset.toml: {' and '.join(changed)} changed "
                f"since; {again}"
            )
        if min_count != self.manifest["min_count"]:
            raise ValueError(
                f"min_count is {min_count}, and {self.folder} was built with "
                f"{self.manifest['min_count']}; ask for the same, or build again"
            )

    def rows(self, part: str) -> int:
        """Return the rows of a part."""
        return self.manifest["rows"][part]

    def array(self, part: str, name: str) -> NDArray[Any]:
        """Return an array of a part, mapped into memory."""
        # Copy on write: torch takes arrays as they are only if they could be written to.
        return np.load(self.folder / part / f"{name}.npy", mmap_mode="c", allow_pickle=False)

    def examples(self, part: str) -> Examples:
        """Return a part as ``Examples`` whose large arrays stay on disk until they are read.

        Users and requests are numbered anew, in the order of their codes. Rows of ``train`` lie by
        lot, so a training may read them in runs.
        """
        arrays = {name: self.array(part, name) for name in ARRAYS if self._has(part, name)}
        for name in ("user_N", "request_N"):
            arrays[name] = np.unique(arrays[name], return_inverse=True)[1].astype(np.int64)
        return Examples(
            sparse_names=tuple(self.manifest["sparse_names"]),
            vocabulary_sizes=tuple(self.manifest["vocabulary_sizes"]),
            dense_names=tuple(self.manifest["dense_names"]),
            run_rows=RUN_ROWS if part == "train" else 1,
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
                if name not in OPTIONAL:
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
