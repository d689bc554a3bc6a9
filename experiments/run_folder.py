"""A run's folder: begun, resumed or refused, and finished.

``run.json`` says what the folder is for and whether it is finished. A folder that was cut off
goes on where it stopped if asked for the same run, and is refused for another.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.records import read_json, write_json

STATE = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder that one run writes."""

    path: Path
    resumed: bool
    """Whether an earlier, interrupted run of the same configuration left work here."""

    @classmethod
    def begin_(cls, path: Path, identity: dict[str, Any], *, overwrite: bool = False) -> RunFolder:
        """Make the folder, or take up the interrupted run of the same identity in it.

        Args:
            path: The folder.
            identity: What the run is: configuration and data fingerprint, JSON values.
            overwrite: Remove a run that stands there, unless it is an interrupted one of the same
                identity, which goes on all the same.

        Raises:
            ValueError: If the folder holds a finished run, an interrupted run of another
                identity, or something that is no run at all.
        """
        path = Path(path)
        state_file = path / STATE
        if overwrite and state_file.is_file():
            standing = read_json(state_file)
            if standing["state"] == "finished" or standing["identity"] != identity:
                shutil.rmtree(path)
        if not path.exists() or not any(path.iterdir()):
            path.mkdir(parents=True, exist_ok=True)
            write_json(state_file, {"state": "running", "identity": identity})
            return cls(path=path, resumed=False)
        if not state_file.is_file():
            raise ValueError(
                f"{path} exists and is not a run of adtower (it has no {STATE}); "
                "nothing was written. Choose another --out"
            )
        state = read_json(state_file)
        if state["state"] == "finished":
            raise ValueError(
                f"{path} holds a finished run; nothing was written. "
                "Choose another --out, or pass --overwrite to replace it"
            )
        if state["identity"] != identity:
            changed = _changes(state["identity"], identity)
            raise ValueError(
                f"{path} holds an interrupted run that differs in {', '.join(changed)}; "
                "nothing was written. Repeat its command to resume it, choose another --out, "
                "or pass --overwrite to replace it"
            )
        return cls(path=path, resumed=True)

    @classmethod
    def reopen(cls, path: Path, identity: dict[str, Any]) -> RunFolder:
        """Open the folder of a run, finished or not, to read from it.

        Raises:
            ValueError: If it is no run, or its settings or data are not those of ``identity``.
        """
        path = Path(path)
        if not (path / STATE).is_file():
            raise ValueError(f"{path} is not a run of adtower (it has no {STATE})")
        state = read_json(path / STATE)
        if state["identity"] != identity:
            changed = _changes(state["identity"], identity)
            raise ValueError(
                f"{path} was made from something else: {', '.join(changed)} differ. "
                "Was the dataset changed since? Run it again"
            )
        return cls(path=path, resumed=True)

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Return ``path / name``, calling ``make`` with a temporary path first if it is missing.

        What ``make`` wrote is renamed into place at the end, so the path is either complete or
        absent. ``make`` may write a file or a folder.
        """
        final = self.path / name
        if final.exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        with full_disk_named(self.path, f"for {name}"):
            make(partial)
            partial.rename(final)
        return final

    def finish_(self, **facts: Any) -> None:
        """Mark the run finished, with ``facts`` to remember beside its identity."""
        state = read_json(self.path / STATE)
        write_json(self.path / STATE, {**state, **facts, "state": "finished"})


class DiskFullError(OSError):
    """No space is left where a run is written."""


@contextmanager
def full_disk_named(path: Path, what: str) -> Iterator[None]:
    """Say what could not be written, and what to do, where no space is left on the disk.

    Args:
        path: The run's folder.
        what: What was being written, as "for the report".

    Raises:
        DiskFullError: Instead of whatever the writer raised.
    """
    try:
        yield
    except DiskFullError:
        raise
    # Polars raises an error of its own for a full disk, which holds the number in its text alone.
    except Exception as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "(os error 28)" not in str(error):
            raise
        raise DiskFullError(
            errno.ENOSPC,
            f"no space is left {what} in {path}. Free some and repeat the command: what is "
            "finished is kept, and the rest is made",
        ) from error


def _changes(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted names of the settings in which two identities differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [c for n in names for c in _changes(old.get(n), new.get(n), f"{at}.{n}".strip("."))]
    return [] if old == new else [at or "everything"]
