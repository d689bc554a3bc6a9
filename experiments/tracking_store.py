"""MLflow as a store of runs: opened under a lock, told what a journal holds, cleared of orphans."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from experiments.tracking_journal import Journal

DATABASE = "mlflow.db"
BATCH = 1000
"""Most metrics that MLflow takes in one call."""
PARAMS_BATCH = 100
"""Most parameters that MLflow takes in one call."""
LOCK_SECONDS = 120.0
HOST, PROCESS, STARTED, JOURNAL = (
    "adtower.host",
    "adtower.pid",
    "adtower.process_started",
    "adtower.journal",
)
"""Tags by which a run whose process has died is known, and one that was told of before."""

_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def default_uri(runs: Path | str) -> str:
    """Return the URI of the sqlite file that tracks the runs of one folder."""
    return f"sqlite:///{Path(runs).resolve() / DATABASE}"


def import_mlflow() -> Any:
    """Import MLflow so that it neither calls home nor unpickles; both are its defaults."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    # It would announce its tables and its pages in the middle of a progress bar.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A server that does not answer would hold training up for minutes.
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


@contextmanager
def store_alone(uri: str) -> Iterator[None]:
    """Hold a sqlite store for this process: several at once crash in its migration, or find it
    locked. Servers see to that themselves."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
        yield


def process_tags() -> dict[str, str]:
    """Return the tags that name this process on this machine."""
    pid = os.getpid()
    return {HOST: socket.gethostname(), PROCESS: str(pid), STARTED: _started(pid) or ""}


class Store:
    """An MLflow tracking store, and the experiment of one journal in it."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Open the store, make the experiment if need be, and end runs whose process has died.

        Raises:
            Exception: Whatever the store's library raises where it cannot be reached.
        """
        mlflow = import_mlflow()
        self.uri = uri
        with store_alone(uri), _quiet():
            self.client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            known = self.client.get_experiment_by_name(experiment)
            self.experiment_id: str = (
                known.experiment_id
                if known is not None
                else self.client.create_experiment(experiment, artifact_location=_files(uri))
            )

    def send(self, journal: Journal) -> None:
        """Tell the store what the journal holds and the store does not know.

        Raises:
            Exception: Whatever the store's library raises; what was sent until then is noted.
        """
        if not journal.pending:
            return
        with store_alone(self.uri), _quiet():
            sent = 0
            try:
                for record in journal.pending:
                    self._apply(journal, record)
                    sent += 1
            finally:
                journal.note_sent(sent)

    def reap(self) -> list[str]:
        """End runs of this machine that are RUNNING though their process has died.

        Returns:
            Their ids. Repeating the command of such a run takes it up again.
        """
        with store_alone(self.uri), _quiet():
            running = self.client.search_runs(
                [self.experiment_id],
                f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'",
                max_results=1000,
            )
            orphans = [run.info.run_id for run in running if not _alive(run.data.tags)]
            for run_id in orphans:
                self.client.set_terminated(run_id, "KILLED")
            return orphans

    def _apply(self, journal: Journal, record: dict[str, Any]) -> None:
        key = record["run"]
        if record["record"] in ("begin", "resume"):
            self._begin(journal, key, record)
            return
        run_id = journal.run_id(key)
        assert run_id is not None, f"the journal tells of run {key!r} before it begins it"
        if record["record"] == "metrics":
            self._log_metrics(run_id, record)
        elif record["record"] == "artifact":
            # A file that was removed since is not worth losing the rest of the journal for.
            if Path(record["path"]).is_file():
                self.client.log_artifact(run_id, record["path"])
        else:
            self.client.set_terminated(run_id, record["status"], end_time=record["time_ms"])

    def _begin(self, journal: Journal, key: str, record: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        own = f"{journal.id}/{key}"
        tags = {**record["tags"], JOURNAL: own}
        if key:
            tags["mlflow.parentRunId"] = journal.run_id("") or ""
        run_id = journal.run_id(key) or self._find(own)
        if run_id is None:
            run_id = self.client.create_run(
                self.experiment_id,
                start_time=record["time_ms"],
                run_name=record["name"],
                tags={JOURNAL: own},
            ).info.run_id
        else:
            self.client.update_run(run_id, status="RUNNING")
        params = [Param(name, value) for name, value in record["params"].items()]
        labels = [RunTag(name, value) for name, value in tags.items() if value]
        for start in range(0, max(len(params), 1), PARAMS_BATCH):
            self.client.log_batch(run_id, params=params[start : start + PARAMS_BATCH], tags=labels)
        journal.note_run(key, run_id)

    def _find(self, own: str) -> str | None:
        """A run that was created just before its process was killed."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{JOURNAL}` = '{own}'")
        return found[0].info.run_id if found else None

    def _log_metrics(self, run_id: str, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, record["time_ms"], step) for name, value, step in record["rows"]
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _alive(tags: dict[str, str]) -> bool:
    """Whether the process that a run names still runs; its number may be another's by now."""
    pid = tags.get(PROCESS, "")
    return not pid.isdigit() or _started(int(pid)) == tags.get(STARTED)


def _started(pid: int) -> str | None:
    """When a process of this machine started, as the kernel counts it; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in brackets, may hold spaces and brackets itself.
    return stat.rpartition(")")[2].split()[19]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow 3.17 calls what its own dependencies have deprecated; no caller can mend that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _files(uri: str) -> str | None:
    """Where artifacts go: beside a sqlite file; a server knows its own place."""
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlflow_files").resolve().as_uri()


def _sqlite_path(uri: str) -> Path | None:
    scheme = "sqlite:///"
    return Path(unquote(uri.removeprefix(scheme))) if uri.startswith(scheme) else None
