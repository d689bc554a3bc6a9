"""The bundle that a server scores with, exchanged for a newer one while requests go on.

A server is pointed at a folder or at a link to one. When what it points to changes, the new
bundle is loaded beside the old one and takes over in one assignment: a request that began with
the old one ends with it. A bundle that does not load, does not reproduce its golden rows on this
machine or asks for other columns is refused, and the old one goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ranking.bundle import GOLDEN_FILE
from ranking.certificate import beyond
from ranking.golden import CASE, HIGH, LOW, NO_VECTORS
from ranking.request_table import KEYS
from ranking.score import Scorer

GOLDEN_TOLERANCE = 1e-5
"""A bundle whose golden rows score further off than this is not served."""

_LOG = logging.getLogger("adtower.serve")


@dataclass(frozen=True, kw_only=True)
class Served:
    """One loaded bundle; a request is answered by one of these alone."""

    scorer: Scorer
    fingerprint: str
    """SHA-256 of the bundle's manifest, which covers every file."""

    @property
    def version(self) -> str:
        """The start of the fingerprint, for people."""
        return self.fingerprint[:12]


class LiveBundle:
    """Holds what is served now.

    Args:
        path: A bundle's folder, or a link to one.
        threads: Of onnxruntime.
        changed: Called with each bundle that takes over, the first one too.

    Raises:
        ValueError: If the first bundle cannot be served.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, changed: Callable[[Served], None] | None = None
    ) -> None:
        self._path = path
        self._threads = threads
        self._changed = changed
        self._lock = threading.Lock()
        self._polled = self._loaded = _state_of(path)
        self.current = self._load()
        if changed is not None:
            changed(self.current)

    def poll(self) -> bool | None:
        """Reload if the folder changed since the last attempt and has kept still since then.

        A folder that is still being copied is not touched.

        Returns:
            As ``reload``; None if there was nothing to do.
        """
        state, before = _state_of(self._path), self._polled
        self._polled = state
        if state == self._loaded or state != before:
            return None
        return self.reload()

    def reload(self) -> bool:
        """Load what the path points to now and serve it; on any failure keep the old bundle.

        Returns:
            Whether a new bundle serves, or the same one was found again.
        """
        with self._lock:
            self._loaded = self._polled = _state_of(self._path)
            try:
                fresh = self._load()
                _same_columns(self.current.scorer, fresh.scorer)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old one serves
                _LOG.error("%s is refused, %s goes on: %s", self._path, self.current.version, error)
                return False
            if fresh.fingerprint != self.current.fingerprint:
                self.current = fresh
                _LOG.info("%s now serves %s", self._path, fresh.version)
                if self._changed is not None:
                    self._changed(fresh)
            return True

    def _load(self) -> Served:
        # Resolved once, so that a link that moves meanwhile cannot mix two bundles.
        folder = self._path.resolve()
        scorer = Scorer.load(folder, threads=self._threads)
        if scorer.query_encoder is not None:
            scorer.query_encoder.load_tokenizer()
        difference = golden_distance(scorer)
        # Not "greater than", so that NaN fails.
        if not difference <= GOLDEN_TOLERANCE:
            raise ValueError(
                f"{folder} scores its golden rows {difference:g} off on this machine, more than "
                f"{GOLDEN_TOLERANCE:g}; were other library versions installed?"
            )
        return Served(scorer=scorer, fingerprint=scorer.bundle.fingerprint)


def golden_distance(scorer: Scorer) -> float:
    """Return how far this machine's scores of the golden rows lie from what they should be."""
    golden = pl.read_parquet(scorer.bundle.path(GOLDEN_FILE)).filter(pl.col(CASE) != NO_VECTORS)
    found_N = scorer.score_examples(scorer.pipeline.transform(golden), scorer.vectors)
    low_N, high_N = (golden[name].to_numpy() for name in (LOW, HIGH))
    return float(beyond(found_N, low_N, high_N).max())


def _state_of(path: Path) -> tuple[object, ...]:
    """What changes whenever a bundle's folder does, without reading its files."""
    try:
        folder = path.resolve()
        return (
            folder,
            *sorted(
                (str(file), status.st_size, status.st_mtime_ns)
                for file in folder.rglob("*")
                if (status := file.stat())
            ),
        )
    except (OSError, RuntimeError):
        # Files may vanish while they are listed, and links form a ring; the next look will tell.
        return ("unreadable",)


def _same_columns(old: Scorer, new: Scorer) -> None:
    asked = [
        {name for name in scorer.pipeline.spec.features.of_impressions() if name not in KEYS}
        for scorer in (old, new)
    ]
    if asked[0] != asked[1]:
        raise ValueError(
            f"the new bundle takes the columns {sorted(asked[1])} and the old one "
            f"{sorted(asked[0])}; clients would fail, so this needs a new server"
        )
