"""What a run tells its tracking store, written down first and sent afterwards.

The journal lies in the run folder. A store that cannot be reached leaves it waiting there; sending
it again changes nothing that arrived before, because every record names its run, its step and its
time. So training never depends on the store, and nothing is lost or doubled when either dies.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.records import read_json, write_json

LINES = "journal.jsonl"
STATE = "state.json"


class Journal:
    """Records of one run and its children, in order, and how many of them the store has.

    A run has a key within its journal: "" for the parent, else the child's name.
    """

    def __init__(self, folder: Path | None, *, uri: str, experiment: str) -> None:
        """Take up the journal of a folder, or begin one.

        Args:
            folder: Where it is kept; None keeps it in memory, and what the store does not take is
                lost at the end of the process.
            uri: The store. A journal goes to the store that it began with, unless it was empty.
            experiment: The list that the run stands in.
        """
        self.folder = folder
        self._records: list[dict[str, Any]] = []
        self._state: dict[str, Any] = {"id": uuid.uuid4().hex, "sent": 0, "runs": {}}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / STATE).is_file():
                self._state = read_json(folder / STATE)
            self._records = self._read(folder / LINES)
        if self._state.get("uri") != uri:
            # Another store knows none of these runs: all is told to it from the beginning.
            self._state |= {"uri": uri, "sent": 0, "runs": {}}
        self._state |= {"experiment": experiment}
        self._write_state()

    @classmethod
    def reopen(cls, folder: Path) -> Journal:
        """Open the journal that a run left.

        Raises:
            ValueError: If there is none.
        """
        if not (folder / STATE).is_file():
            raise ValueError(
                f"{folder.parent} holds no journal of tracking (no {folder.name}/{STATE}): was it "
                "run with --no-track, or is it not the folder of a run?"
            )
        state = read_json(folder / STATE)
        return cls(folder, uri=state["uri"], experiment=state["experiment"])

    @property
    def id(self) -> str:
        """Names this journal among all; a store's runs carry it as a tag."""
        return self._state["id"]

    @property
    def uri(self) -> str:
        """The store that this journal goes to."""
        return self._state["uri"]

    @property
    def experiment(self) -> str:
        """The list that the run stands in."""
        return self._state["experiment"]

    @property
    def pending(self) -> list[dict[str, Any]]:
        """The records that the store does not have yet, in order."""
        return self._records[self._state["sent"] :]

    def knows(self, key: str) -> bool:
        """Whether a run was begun before, by this process or an earlier one."""
        return any(r["record"] == "begin" and r["run"] == key for r in self._records)

    def run_id(self, key: str) -> str | None:
        """Return the store's id of a run; None while the store has not heard of it."""
        return self._state["runs"].get(key)

    def begin(
        self, key: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Begin a run, or take up the one of this key that was cut off."""
        kind = "resume" if self.knows(key) else "begin"
        self._add(
            {"record": kind, "run": key, "name": name, "params": dict(params), "tags": dict(tags)}
        )

    def metrics(self, key: str, rows: Sequence[tuple[str, float, int]]) -> None:
        """Add figures: name, value, step."""
        if rows:
            self._add({"record": "metrics", "run": key, "rows": [list(row) for row in rows]})

    def artifact(self, key: str, path: Path) -> None:
        """Add a file; it is read when the record is sent."""
        self._add({"record": "artifact", "run": key, "path": str(path.resolve())})

    def end(self, key: str, status: str) -> None:
        """End a run as FINISHED or FAILED."""
        self._add({"record": "end", "run": key, "status": status})

    def note_run(self, key: str, run_id: str) -> None:
        """Remember the store's id of a run."""
        self._state["runs"][key] = run_id
        self._write_state()

    def note_sent(self, count: int) -> None:
        """Count so many more records as known to the store."""
        self._state["sent"] += count
        self._write_state()

    def _add(self, record: dict[str, Any]) -> None:
        record["time_ms"] = int(time.time() * 1000)
        self._records.append(record)
        if self.folder is not None:
            with (self.folder / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def _write_state(self) -> None:
        if self.folder is not None:
            write_json(self.folder / STATE, self._state)

    @staticmethod
    def _read(path: Path) -> list[dict[str, Any]]:
        """The whole lines of a journal; half a line, left by a process that was killed, is cut."""
        if not path.is_file():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
