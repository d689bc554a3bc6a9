"""What a server answered, one JSON line a request: the request, its features and its scores.

``adtower skew`` replays such a file. A line holds ``format``, ``bundle`` (the SHA-256 of its
manifest), ``request`` (as ``ranking.request.ScoreRequest`` reads it, the time always given),
``features`` and ``p_click``. A feature is a list with one value a candidate, or one value that
all candidates share; the purchase history is one list of product ids. Any server that writes
these lines can be checked.

Shape letters: K candidates, C columns.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.embedding_join import derived_features, gather_vectors
from ranking.columns import VECTOR_COLUMNS
from ranking.live_bundle import Served
from ranking.request import ScoreRequest, parse_problem
from ranking.request_table import ScoredRequest
from ranking.score import Prepared, Scorer

FORMAT = "adtower-served-1"
HISTORY = "history"

_WAITING = 1000
"""Requests that may wait to be written; further ones are dropped and counted."""


class ServedLine(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: str = Field(pattern=f"^{FORMAT}$")
    bundle: str
    request: ScoreRequest
    features: dict[str, Any]
    p_click: list[float]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    served: Served
    request: ScoreRequest
    prepared: Prepared
    scored: ScoredRequest


class ServedLog:
    """Writes lines from a thread of its own, so that no request waits for a disk.

    Args:
        path: Appended to.
        every: Keep one request in this many; the first is kept.
    """

    def __init__(self, path: Path, *, every: int = 1) -> None:
        self.dropped = 0
        """Requests that were not written because the disk did not keep up."""
        self._every = every
        self._seen = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._waiting: queue.Queue[_Answer | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="served-log")
        self._thread.start()

    def add(
        self, served: Served, request: ScoreRequest, prepared: Prepared, scored: ScoredRequest
    ) -> None:
        """Have one answer written, if it is one of those to keep."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        answer = _Answer(served=served, request=request, prepared=prepared, scored=scored)
        try:
            self._waiting.put_nowait(answer)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits and close the file."""
        self._waiting.put(None)
        self._thread.join()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_all(self) -> None:
        while (answer := self._waiting.get()) is not None:
            self._file.write(_line_of(answer))
            if self._waiting.empty():
                self._file.flush()


def read_served(path: str | Path) -> Iterator[tuple[int, ServedLine]]:
    """Yield the lines of a log with their numbers, from 1.

    A last line without an end, which a killed server leaves, is passed over.

    Raises:
        ValueError: If the file is missing, or another line is not of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `adtower serve --log FILE` writes such a log")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, ServedLine.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {parse_problem(error)}") from None


def features_of(prepared: Prepared, scorer: Scorer) -> dict[str, NDArray]:
    """Return every feature of a request by name, each of shape (K,); the history is of shape (L,).

    Sparse features are rows of their tables, dense ones as they are fed, and of the vectors the
    columns that models without an embedding tower get.
    """
    examples = prepared.examples
    columns: dict[str, NDArray] = {}
    for place, name in enumerate(examples.sparse_names):
        columns[name] = examples.sparse_NF[:, place]
    for place, name in enumerate(examples.dense_names):
        columns[name] = examples.dense_NC[:, place]
    if prepared.vectors is not None:
        rows = gather_vectors(prepared.vectors, examples)
        values_KC = np.concatenate([derived_features(rows), rows.present_N3], axis=1)
        columns |= dict(zip(VECTOR_COLUMNS, values_KC.T, strict=True))
    ids = scorer.pipeline.product_ids_
    bought = [ids[row] for row in examples.history_NL[0] if row >= 0]
    return {**columns, HISTORY: np.array(bought, object)}


def _line_of(answer: _Answer) -> bytes:
    columns = features_of(answer.prepared, answer.served.scorer)
    # The moment is always told, because "now" would be another one at the replay.
    request = answer.request.model_dump(mode="json", exclude_defaults=True)
    request["time"] = answer.request.time.isoformat()
    line = {
        "format": FORMAT,
        "bundle": answer.served.fingerprint,
        "request": request,
        "features": {name: _compact(name, values) for name, values in columns.items()},
        "p_click": answer.scored.p_click_K.tolist(),
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _compact(name: str, values: NDArray) -> Any:
    """One value where all are alike; floats as they print in float32, which reads back equal."""
    if values.dtype == np.float32:
        values = np.array([float(str(value)) for value in values])
    alike = name != HISTORY and bool((values == values[0]).all())
    return values[0].item() if alike else values.tolist()
