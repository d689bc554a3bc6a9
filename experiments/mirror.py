"""A run as MLflow sees it: one parent, one child a variant, filled while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from experiments.records import METRICS, code_version
from experiments.tracking import Tracker, default_uri

if TYPE_CHECKING:
    from experiments.pipeline import Run, RunResult
    from experiments.training import Trained

PAGE = "report.html"


class RunMirror:
    """Tells MLflow of a run's models as they are trained, and of its figures at the end.

    Use it as a context around the training.
    """

    def __init__(self, line: Run) -> None:
        """Prepare to mirror a run; nothing is opened yet.

        Args:
            line: The run; with ``track`` off in its settings nothing is told to anybody.
        """
        config = line.config
        self._line = line
        self._tags = run_tags(line)
        self._tracker = Tracker(
            config.tracking_uri or default_uri(line.folder.path.parent),
            run_name=line.folder.path.name,
            params=config.model_dump(mode="json", exclude={"data", "out"}),
            tags=self._tags,
            run_folder=line.folder.path,
            required=config.tracking_required,
        )

    def __enter__(self) -> RunMirror:
        self._tracker.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tracker.__exit__(*error)

    def trained(self, one: Trained) -> None:
        """Tell of a model that has just been trained: its curve and its cost."""
        child = self._tracker.begin_variant(
            one.variant.name,
            params=one.variant.model_dump(mode="json"),
            tags={**self._tags, **self._encoder(one)},
        )
        curves = {
            key: {check: row[key] for check, row in enumerate(one.curve)}
            for key in (one.curve[0] if one.curve else ())
        }
        costs = {"fit_seconds": one.seconds, "peak_bytes": float(one.peak_bytes)}
        curves |= {name: {0: value} for name, value in costs.items()}
        child.log_curves({f"seed{one.seed}.{key}": curve for key, curve in curves.items()})

    def finished(self, trained: Mapping[str, list[Trained]], result: RunResult) -> None:
        """Tell of the figures of every variant and of the whole, and copy the page."""
        for name, seeds in trained.items():
            child = self._tracker.begin_variant(
                name, tags={**self._tags, **self._encoder(seeds[0])}
            )
            child.log_metrics(_figures_of(name, result.metrics))
        self._tracker.log_histories(self._line.vectors.histories())
        for name in ("ab", "oracle", "exchange"):
            self._tracker.log_metrics(_figures_of(name, result.metrics))
        files = [self._line.folder.path / name for name in (METRICS, PAGE)]
        self._tracker.log_artifacts([path for path in files if path.is_file()])

    def _encoder(self, one: Trained) -> dict[str, str]:
        vectors = self._line.joined(one.variant)
        return {} if vectors is None else {"encoder": vectors.fingerprint[:250]}


class NoMirror:
    """Stands where a run is not tracked."""

    def trained(self, one: Trained) -> None:
        """Tell nobody."""

    def finished(self, trained: Mapping[str, list[Trained]], result: RunResult) -> None:
        """Tell nobody."""


def mirrored(line: Run) -> AbstractContextManager[RunMirror | NoMirror]:
    """Return what to tell of a run, by its settings."""
    return RunMirror(line) if line.config.track else nullcontext(NoMirror())


def run_tags(line: Run) -> dict[str, str]:
    """Return the tags by which a run can be found: fingerprint of the data, version of the code."""
    return {"data": line.dataset.fingerprint(), "code": code_version()}


def _figures_of(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of one variant, or of one part of the run, under their own names."""
    return {
        key.removeprefix(f"{name}."): value
        for key, value in metrics.items()
        if key.startswith(f"{name}.")
    }
