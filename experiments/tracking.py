"""Mirror a run in MLflow: one parent run, one child a variant, in a sqlite file by default.

The run folder is the record; MLflow is a copy for those who browse many runs. So a store that
cannot be reached costs a warning and nothing else: training goes on, what there is to tell waits
in the run folder, and the store catches up when it answers again or with ``adtower track replay``.
What is tracked must be right, though: a NaN is refused, whether or not the store can be reached.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.records import finite_metrics
from experiments.tracking_journal import Journal
from experiments.tracking_store import Store, default_uri, process_tags

__all__ = ["Tracker", "TrackingUnavailable", "VariantRun", "default_uri", "replay"]

EXPERIMENT = "adtower"
SPOOL = "tracking"
"""Folder of a run that keeps what is tracked."""
LONGEST_PARAM = 6000
"""Most characters that MLflow takes in a parameter."""
RETRY_SECONDS = 30.0
"""How long a store that failed is left alone."""


class TrackingUnavailable(UserWarning):
    """The store could not be reached; the run goes on without it."""


class Tracker:
    """Writes one run, and its variants below it, to MLflow.

    Use it as a context: the run is FINISHED at its end, and FAILED where an exception leaves it.
    A run that was killed is taken up again under its old id. MLflow is imported when the run begins
    (about a second), never before.
    """

    def __init__(
        self,
        uri: str,
        *,
        run_name: str,
        experiment: str = EXPERIMENT,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_folder: Path | None = None,
        required: bool = False,
    ) -> None:
        """Store the settings; nothing is opened yet.

        Args:
            uri: MLflow tracking URI, always explicit: ``default_uri(folder)`` or a server's. An
                old ``./mlruns`` in the working folder would be taken up silently otherwise.
            run_name: What the run is called in the list.
            experiment: The list it stands in.
            params: Settings; nested ones get dotted names.
            tags: Fingerprints of data and vectors, git commit, and the like.
            run_folder: Where to keep what the store has not taken; None keeps it in memory.
            required: Refuse to begin where the store cannot be reached.

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
        self.params = {
            _safe(key): str(value)[:LONGEST_PARAM] for key, value in _flat(params or {}).items()
        }
        self.tags = {key: str(value) for key, value in (tags or {}).items() if value}
        self.required = required
        self._experiment = experiment
        self._spool = None if run_folder is None else run_folder / SPOOL
        self._journal: Journal | None = None
        self._store: Store | None = None
        self._retry_at = 0.0
        self._warned = False
        self._open_children: list[str] = []

    @property
    def run_id_(self) -> str | None:
        """Id of the run in MLflow; None while MLflow has not heard of it."""
        return None if self._journal is None else self._journal.run_id("")

    @property
    def reachable(self) -> bool:
        """Whether what was logged last arrived."""
        return self._store is not None

    def __enter__(self) -> Tracker:
        """Begin the run, or take it up.

        Raises:
            ValueError: If the store is required and cannot be reached.
        """
        self._journal = Journal(self._spool, uri=self.uri, experiment=self._experiment)
        self._journal.begin("", self.run_name, self.params, {**self.tags, **process_tags()})
        error = self._send()
        if error is not None and self.required:
            raise ValueError(
                f"MLflow at {self.uri} cannot be used ({_in_words(error)}), and tracking is "
                "required; nothing was trained. Start the server, correct --tracking-uri, or run "
                "without --tracking-required: what is tracked then waits in the run folder"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._journal is not None
        status = "FINISHED" if kind is None else "FAILED"
        for key in [*self._open_children, ""]:
            self._journal.end(key, status)
        self._open_children.clear()
        self._retry_at = 0.0
        self._send()

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
        child = self.begin_variant(name, params=params, tags=tags)
        status = "FAILED"
        try:
            yield child
            status = "FINISHED"
        finally:
            self._open_children.remove(name)
            self._told().end(name, status)
            self._send()

    def begin_variant(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> VariantRun:
        """Begin a variant's run, which ends with this one, or return it if it has begun.

        Args:
            name: Name of the variant.
            params: Its settings.
            tags: Its fingerprints.
        """
        if name not in self._open_children:
            flat = {_safe(k): str(v)[:LONGEST_PARAM] for k, v in _flat(params or {}).items()}
            labels = {key: str(value) for key, value in (tags or {}).items() if value}
            self._told().begin(name, name, flat, {**labels, **process_tags()})
            self._open_children.append(name)
            self._send()
        return VariantRun(self, name)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log figures of the whole run, many in one call.

        Args:
            metrics: Finite numbers by dotted name.
            step: Epoch or step they belong to.

        Raises:
            ValueError: If a value is NaN, infinite or no number; the message names each. MLflow
                itself would store infinity as 1.8e308.
        """
        self._log("", [(name, value, step) for name, value in metrics.items()])

    def log_curve(self, name: str, value_by_step: Mapping[int, float]) -> None:
        """Log one figure at many steps.

        Args:
            name: Its name.
            value_by_step: Finite numbers by step.

        Raises:
            ValueError: As ``log_metrics``.
        """
        self._log("", [(name, value, step) for step, value in value_by_step.items()])

    def log_histories(self, histories: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Log what training wrote down at each step, as ``STAGE.METRIC``.

        Args:
            histories: By stage and metric, a value a step. A value that is no number (an AUC of a
                batch without a mismatch) is left out of its curve.
        """
        rows = [
            (f"{stage}.{name}", value, step)
            for stage, history in histories.items()
            for name, values in history.items()
            for step, value in enumerate(values, 1)
            if math.isfinite(value)
        ]
        self._log("", rows)

    def log_artifacts(self, paths: Sequence[Path | str]) -> None:
        """Copy files to the run, such as ``report.html`` and ``metrics.json``.

        Raises:
            FileNotFoundError: If one of them is missing.
        """
        missing = [str(path) for path in paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"nothing to track at {', '.join(missing)}")
        for path in paths:
            self._told().artifact("", Path(path))
        self._send()

    def _log(self, key: str, rows: Sequence[tuple[str, Any, int]]) -> None:
        for name, value, step in rows:
            finite_metrics({f"{name} at step {step}" if step else name: value}, "MLflow")
        self._told().metrics(key, [(_safe(name), float(value), step) for name, value, step in rows])
        self._send()

    def _told(self) -> Journal:
        if self._journal is None:
            raise ValueError("the tracker has not begun; use it as `with Tracker(...) as tracker:`")
        return self._journal

    def _send(self) -> Exception | None:
        """Send what waits; where the store fails, warn once and leave it alone for a while."""
        journal = self._told()
        if time.monotonic() < self._retry_at:
            return None
        try:
            if self._store is None:
                self._store = Store(self.uri, journal.experiment)
                self._store.send(journal)
                self._store.reap()
            else:
                self._store.send(journal)
        # Whatever the store's library raises (sqlite, HTTP, its own): training matters more.
        except Exception as error:  # noqa: BLE001
            self._store = None
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._warned and not self.required:
                self._warn(error)
            return error
        return None

    def _warn(self, error: Exception) -> None:
        self._warned = True
        waits = "is lost to MLflow, while the run's folder holds everything"
        if self._spool is not None:
            waits = (
                f"waits in {self._spool} and is sent when the store answers again, or by `adtower "
                f"track replay {self._spool.parent}`"
            )
        warnings.warn(
            f"MLflow at {self.uri} cannot be used ({_in_words(error)}). The run goes on; what it "
            f"tracks {waits}. Check the path or the server, or run without tracking",
            TrackingUnavailable,
            stacklevel=4,
        )


class VariantRun:
    """A variant's run below the run that compares it; ``Tracker.variant`` makes it."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker = tracker
        self._name = name

    @property
    def run_id(self) -> str | None:
        """Id in MLflow; None while MLflow has not heard of it."""
        return self._tracker._told().run_id(self._name)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log the variant's figures; as ``Tracker.log_metrics``."""
        self._tracker._log(self._name, [(name, value, step) for name, value in metrics.items()])

    def log_curve(self, name: str, value_by_step: Mapping[int, float]) -> None:
        """Log one of the variant's figures at many steps; as ``Tracker.log_curve``."""
        self.log_curves({name: value_by_step})

    def log_curves(self, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Log several figures at many steps in one call.

        Args:
            curves: By name, finite numbers by step.

        Raises:
            ValueError: As ``Tracker.log_metrics``.
        """
        rows = [(name, v, step) for name, curve in curves.items() for step, v in curve.items()]
        self._tracker._log(self._name, rows)


def replay(run_folder: Path) -> int:
    """Send what a run's store has not taken yet.

    Args:
        run_folder: Folder of a run that was tracked.

    Returns:
        How many records were sent; 0 if the store had them all.

    Raises:
        ValueError: If the folder was not tracked, or the store still cannot be reached.
    """
    journal = Journal.reopen(run_folder / SPOOL)
    waiting = len(journal.pending)
    if waiting:
        try:
            Store(journal.uri, journal.experiment).send(journal)
        except Exception as error:
            raise ValueError(
                f"MLflow at {journal.uri} cannot be used ({_in_words(error)}); "
                f"{len(journal.pending)} of {waiting} records still wait in {run_folder / SPOOL}"
            ) from error
    return waiting


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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
