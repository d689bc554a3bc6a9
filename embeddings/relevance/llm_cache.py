"""The file of calls: every answer that was paid for, and every call that may have been.

One SQLite file in write-ahead mode, with one writing process at a time. A call has a row before it
is sent, with the most that it can cost; the row becomes its answer when that arrives, before
anything is done with it. So a process killed at any moment loses the answers that were under way
and no others, and the sum over the rows is never less than what was spent. An answer is on the disk
when it is recorded; a power cut can take the rows of calls that had none yet.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from embeddings.relevance.llm_answer import Usage
from embeddings.relevance.llm_dialect import Dialect

_FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    outcome TEXT NOT NULL,       -- begun, answered, or a kind of failure
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    stated INTEGER NOT NULL,     -- 1 if the tokens are the endpoint's own figures
    detail TEXT,
    body BLOB,                   -- of an answer, as it came, compressed
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);
CREATE INDEX IF NOT EXISTS calls_by_key ON calls (key);
CREATE TABLE IF NOT EXISTS dialects (model TEXT PRIMARY KEY, dialect TEXT NOT NULL);
"""


def cache_key(rubric_version: str, request: Mapping[str, Any]) -> str:
    """Return the SHA-256, as hex digits, of all that an answer depends on.

    Args:
        rubric_version: Version of the rubric.
        request: The request's body: model, messages, decoding parameters.
    """
    content = json.dumps({"rubric": rubric_version, "request": request}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """Answers by key; a context manager that holds the file for one process."""

    def __init__(self, path: Path | str) -> None:
        """Open the file, or make it.

        Raises:
            ValueError: If another process has it, or it is no such file.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"{self.path} is in use by another process; wait for it, or give another cache"
            ) from error
        self._open = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._prepare_()
        except (sqlite3.DatabaseError, ValueError) as error:
            self.close()
            raise ValueError(f"{self.path} is no cache of answers: {error}") from error

    def _prepare_(self) -> None:
        self._open.execute("PRAGMA journal_mode=WAL")
        self._open.execute("PRAGMA synchronous=NORMAL")
        (found,) = self._open.execute("PRAGMA user_version").fetchone()
        if found not in (0, _FORMAT):
            raise ValueError(f"its format is {found}; this version reads {_FORMAT}")
        self._open.executescript(_TABLES)
        self._open.execute(f"PRAGMA user_version={_FORMAT}")
        self._open.execute(
            "UPDATE calls SET outcome='lost', detail='the process ended before the answer came' "
            "WHERE outcome='begun'"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._open.close()
        self._lock.release()

    def begin(self, key: str, worst: Usage, cost: float) -> int:
        """Record that a call is about to be sent, with the most it can use; returns its number."""
        cursor = self._open.execute(
            "INSERT INTO calls (key, outcome, prompt_tokens, completion_tokens, cost, stated) "
            "VALUES (?, 'begun', ?, ?, ?, 0)",
            (key, worst.prompt_tokens, worst.completion_tokens, cost),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def record_answer(self, call: int, body: str, usage: Usage | None, cost: float) -> None:
        """Keep the answer of a call.

        Args:
            call: Number of the call.
            body: The HTTP body as it came.
            usage: What it says it used; None leaves the most it can have used.
            cost: What it cost.
        """
        changes: dict[str, Any] = {"outcome": "answered", "cost": cost}
        changes["body"] = zlib.compress(body.encode("utf-8", "surrogatepass"))
        if usage is not None:
            changes |= {"stated": 1, **vars(usage)}
        places = ", ".join(f"{name}=?" for name in changes)
        # Waiting for the disk takes milliseconds; what was paid for is worth them, the rest not.
        self._open.execute("PRAGMA synchronous=FULL")
        self._open.execute(f"UPDATE calls SET {places} WHERE id=?", (*changes.values(), call))
        self._open.execute("PRAGMA synchronous=NORMAL")

    def record_failure(self, call: int, kind: str, detail: str, *, perhaps_paid: bool) -> None:
        """Keep that a call brought no answer; what cannot have been paid costs nothing."""
        free = "" if perhaps_paid else ", prompt_tokens=0, completion_tokens=0, cost=0"
        self._open.execute(
            f"UPDATE calls SET outcome=?, detail=?{free} WHERE id=?", (kind, detail, call)
        )

    def answers(self, key: str) -> list[str]:
        """Return the bodies of all answers to a key, first to last."""
        rows = self._open.execute(
            "SELECT body FROM calls WHERE key=? AND outcome='answered' ORDER BY id", (key,)
        )
        return [zlib.decompress(body).decode("utf-8", "surrogatepass") for (body,) in rows]

    def cost(self) -> float:
        """Return the most that all calls can have cost, those under way included."""
        return float(self._open.execute("SELECT total(cost) FROM calls").fetchone()[0])

    def totals(self) -> dict[str, dict[str, float]]:
        """Return calls, tokens and cost of each outcome."""
        rows = self._open.execute(
            "SELECT outcome, count(*), sum(prompt_tokens), sum(completion_tokens), total(cost) "
            "FROM calls GROUP BY outcome ORDER BY outcome"
        )
        names = ("calls", "prompt_tokens", "completion_tokens", "cost")
        return {outcome: dict(zip(names, figures, strict=True)) for outcome, *figures in rows}

    def dialect(self, model: str) -> Dialect | None:
        """Return the dialect that was found for a model, if one was."""
        row = self._open.execute("SELECT dialect FROM dialects WHERE model=?", (model,)).fetchone()
        return None if row is None else Dialect.model_validate_json(row[0])

    def record_dialect(self, model: str, dialect: Dialect) -> None:
        """Keep the dialect of a model for later runs."""
        self._open.execute(
            "INSERT OR REPLACE INTO dialects VALUES (?, ?)", (model, dialect.model_dump_json())
        )
