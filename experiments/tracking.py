"""Mirror a run in MLflow: one parent run, one child a variant, in a sqlite file by default.

The run folder is the record; MLflow is a copy for those who browse many runs. So a store that
cannot be reached costs a warning and nothing else: training goes on, and nothing is written there.
What is tracked must be right, though: a NaN is refused, whether or not the store can be reached.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from experiments.records import finite_metrics

DATABASE = "mlflow.db"
EXPERIMENT = "adtower"
BATCH = 1000
"""Most metrics that MLflow takes in one call."""
LONGEST_PARAM = 6000
"""Most characters that MLflow takes in a parameter."""
LOCK_SECONDS = 120.0


class TrackingUnavailable(UserWarning):
    """The store could not be reached; the run goes on without it."""


def default_uri(runs: Path | str) -> str:
    """Return the URI of the sqlite file that tracks the runs of one folder."""
    return f"sqlite:///{Path(runs).resolve() / DATABASE}"


class Tracker:
    """Writes one run, and its variants below it, to MLflow.

    Use it as a context: the run is FINISHED at its end, and FAILED where an exception leaves it.
    MLflow is imported when the run begins (about a second), never before.
    """

    def __init__(
        self,
        uri: str,
        *,
        run_name: str,
        experiment: str = EXPERIMENT,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Store the settings; nothing is opened yet.

        Args:
            uri: MLflow tracking URI, always explicit: ``default_uri(folder)`` or a server's. An
                old ``./mlruns`` in the working folder would be taken up silently otherwise.
            run_name: What the run is called in the list.
            experiment: The list it stands in.
            params: Settings; nested ones get dotted names.
            tags: Fingerprints of data and vectors, git commit, and the like.

        Raises:
            ValueError: If the URI is empty.
        """
        if not uri:
            raise ValueError(
                "the tracking URI is empty; give one such as sqlite:////data/runs/mlflow.db, "
                "or do not track"
            )
        self.uri = uri
        self.run_name = run_name
        self.experiment = experiment
        self.params = dict(params or {})
        self.tags = dict(tags or {})
        self.run_id_: str | None = None
        """Id of the run in MLflow; None while nothing is tracked."""
        self._client: Any = None
        self._experiment_id = ""

    def __enter__(self) -> Tracker:
        self._try(self._open)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        run_id, self.run_id_ = self.run_id_, None
        if run_id is not None:
            self._end(run_id, failed=kind is not None)

    @property
    def reachable(self) -> bool:
        """Whether what is logged arrives anywhere."""
        return self._client is not None

    @contextmanager
    def variant(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[VariantRun]:
        """Open a run below this one for a variant; it ends FAILED where an exception leaves it.

        Args:
            name: Name of the variant.
            params: Its settings.
            tags: Its fingerprints.

        Yields:
            What its figures are logged to.
        """
        parent = {"mlflow.parentRunId": self.run_id_ or ""}
        run_id = self._try(lambda: self._create(name, params or {}, {**(tags or {}), **parent}))
        failed = True
        try:
            yield VariantRun(self, run_id)
            failed = False
        finally:
            if run_id is not None:
                self._end(run_id, failed=failed)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log figures of the whole run, many in one call.

        Args:
            metrics: Finite numbers by dotted name.
            step: Epoch or step they belong to.

        Raises:
            ValueError: If a value is NaN, infinite or no number; the message names each. MLflow
                itself would store infinity as 1.8e308.
        """
        self._log(self.run_id_, [(name, value, step) for name, value in metrics.items()])

    def log_curve(self, name: str, value_by_step: Mapping[int, float]) -> None:
        """Log one figure at many steps.

        Args:
            name: Its name.
            value_by_step: Finite numbers by step.

        Raises:
            ValueError: As ``log_metrics``.
        """
        self._log(self.run_id_, [(name, value, step) for step, value in value_by_step.items()])

    def log_histories(self, histories: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Log what training wrote down at each step, as ``STAGE.METRIC``.

        Args:
            histories: By stage and metric, a value a step. A value that is no number (an AUC of a
                batch without a mismatch) is left out of its curve.
        """
        for stage, history in histories.items():
            for name, values in history.items():
                curve = {step: v for step, v in enumerate(values, 1) if math.isfinite(v)}
                self.log_curve(f"{stage}.{name}", curve)

    def log_artifacts(self, paths: Sequence[Path | str]) -> None:
        """Copy files to the run, such as ``report.html`` and ``metrics.json``.

        Raises:
            FileNotFoundError: If one of them is missing.
        """
        missing = [str(path) for path in paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"nothing to track at {', '.join(missing)}")
        run_id = self.run_id_
        if run_id is not None:
            for path in paths:
                self._try(lambda path=path: self._client.log_artifact(run_id, str(path)))

    def _log(self, run_id: str | None, rows: Sequence[tuple[str, Any, int]]) -> None:
        for name, value, step in rows:
            finite_metrics({f"{name} at step {step}" if step else name: value}, "MLflow")
        if run_id is None or not self.reachable:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_safe(name), float(value), now, step) for name, value, step in rows]
        for start in range(0, len(metrics), BATCH):
            batch = metrics[start : start + BATCH]
            self._try(lambda batch=batch: self._client.log_batch(run_id, metrics=batch))

    def _open(self) -> None:
        mlflow = _import_mlflow()
        with _first_use_alone(self.uri):
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            known = client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                known.experiment_id
                if known is not None
                else client.create_experiment(self.experiment, artifact_location=_files(self.uri))
            )
        self._client = client
        self.run_id_ = self._create(self.run_name, self.params, self.tags)

    def _create(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param, RunTag

        run_id = self._client.create_run(self._experiment_id, run_name=name).info.run_id
        flat = [
            Param(_safe(key), str(value)[:LONGEST_PARAM]) for key, value in _flat(params).items()
        ]
        labels = [RunTag(key, str(value)) for key, value in tags.items() if value]
        for start in range(0, max(len(flat), 1), 100):
            self._client.log_batch(run_id, params=flat[start : start + 100], tags=labels)
        return run_id

    def _end(self, run_id: str, *, failed: bool) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._try(lambda: self._client.set_terminated(run_id, status))

    def _try(self, call: Callable[[], Any]) -> Any:
        """Do what needs the store; where the store fails, warn once and stop using it."""
        if self._client is None and call != self._open:
            return None
        try:
            # MLflow 3.17 calls what its own dependencies have deprecated; no caller can mend that.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return call()
        # Whatever the store's library raises (sqlite, HTTP, its own): training matters more.
        except Exception as error:  # noqa: BLE001
            self._client = self.run_id_ = None
            warnings.warn(
                f"MLflow at {self.uri} cannot be used ({type(error).__name__}: {error}). The run "
                "goes on; nothing more of it is tracked, and its folder holds everything. Check "
                "the path or the server, or run without tracking",
                TrackingUnavailable,
                stacklevel=3,
            )
            return None


class VariantRun:
    """A variant's run below the run that compares it; ``Tracker.variant`` makes it."""

    def __init__(self, tracker: Tracker, run_id: str | None) -> None:
        self._tracker = tracker
        self.run_id = run_id
        """Id in MLflow; None where nothing is tracked."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log the variant's figures; as ``Tracker.log_metrics``."""
        self._tracker._log(self.run_id, [(name, value, step) for name, value in metrics.items()])

    def log_curve(self, name: str, value_by_step: Mapping[int, float]) -> None:
        """Log one of the variant's figures at many steps; as ``Tracker.log_curve``."""
        rows = [(name, value, step) for step, value in value_by_step.items()]
        self._tracker._log(self.run_id, rows)


def _import_mlflow() -> Any:
    """Import MLflow so that it neither calls home nor unpickles; both are its defaults."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    # It would announce the creation of its tables in the middle of a progress bar.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    import mlflow

    return mlflow


@contextmanager
def _first_use_alone(uri: str) -> Iterator[None]:
    """Let one process at a time create a sqlite store: several at once crash in its migration."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
        yield


def _files(uri: str) -> str | None:
    """Where artifacts go: beside a sqlite file; a server knows its own place."""
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlflow_files").resolve().as_uri()


def _sqlite_path(uri: str) -> Path | None:
    scheme = "sqlite:///"
    return Path(unquote(uri.removeprefix(scheme))) if uri.startswith(scheme) else None


def _flat(params: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    out: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{at}.{key}" if at else str(key)
        out |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return out


def _safe(name: str) -> str:
    """A name as MLflow allows it: recall@10 becomes recall_at_10."""
    name = name.replace("@", "_at_")
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]
