"""Models in MLflow's registry, under an alias that the verdict of their run decides.

``champion`` is a variant that shipped: above the baseline and above the better placebo. Everything
else is a ``challenger``: it may be loaded and tried, and nothing that serves the champion sees it.
A model is an exported bundle as an MLflow model of code and data; a pickle is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.comparison import Comparison
from experiments.run_comparison import COMPARISON
from experiments.tracking import SPOOL, replay
from experiments.tracking_journal import Journal
from experiments.tracking_store import Store, store_alone

Alias = Literal["champion", "challenger"]

ARTIFACT = "model"
"""Folder of the model among its run's artifacts."""
PICKLE_NAMES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a pickle, protocols 2 to 5."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    alias: Alias
    variant: str
    why: str
    """What the run's comparison says of the variant."""
    before: str | None
    """The version that had the alias until now; None where none had it."""

    @property
    def uri(self) -> str:
        """What ``mlflow.pyfunc.load_model`` takes."""
        return f"models:/{self.name}@{self.alias}"


def choose(comparison: Comparison, variant: str | None = None) -> tuple[str, Alias]:
    """Return which variant is registered, and under which alias.

    Args:
        comparison: Of the run.
        variant: A variant by name; by default the best that ships, else the best candidate.

    Raises:
        ValueError: If the variant was not compared or is a placebo, or there is no candidate.
    """
    if variant is not None and variant in comparison.controls:
        raise ValueError(f"{variant} is a placebo; its vectors mean nothing, so it is no model")
    rows = [comparison[variant]] if variant is not None else list(comparison.candidates)
    if not rows:
        raise ValueError(
            f"the run compared nothing with {comparison.baseline}; name a --variant to register"
        )
    best = next((row for row in rows if row.ships), rows[0])
    return best.name, "champion" if best.ships else "challenger"


def register_run(
    run_folder: Path, bundle: Path, name: str, variant: str | None = None
) -> Registered:
    """Register an exported variant of a run under the alias that its verdict earns.

    The verdict compares it with ``production`` and the placebos of its own run, not with the
    version that is champion now.

    Args:
        run_folder: Folder of a run that compared variants and was tracked.
        bundle: What ``adtower export`` wrote of the variant.
        name: Of the registered model; it is made if it is new.
        variant: As ``choose`` takes it.

    Raises:
        ValueError: If the run was not compared or not tracked, MLflow cannot be reached, or the
            model holds a pickle.
    """
    from ranking.mlflow_model import save_mlflow_model

    comparison = read_comparison(run_folder)
    chosen, alias = choose(comparison, variant)
    replay(run_folder)
    journal = Journal.reopen(run_folder / SPOOL)
    run_id = journal.run_id(chosen)
    assert run_id is not None, f"{run_folder} compared {chosen} and did not track it"
    folder = run_folder / f".{ARTIFACT}.partial"
    if folder.exists():
        shutil.rmtree(folder)
    try:
        refuse_pickles(save_mlflow_model(bundle, folder))
        tags = {"variant": chosen, "verdict": comparison.describe(chosen)}
        version, before = _register(journal, run_id, folder, name, alias, tags)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Registered(
        name=name,
        version=version,
        alias=alias,
        variant=chosen,
        why=comparison.describe(chosen),
        before=before,
    )


def read_comparison(run_folder: Path) -> Comparison:
    """Return what a run's variants were found to be worth.

    Raises:
        ValueError: If the run compared nothing.
    """
    path = run_folder / COMPARISON
    if not path.is_file():
        raise ValueError(
            f"{run_folder} holds no {COMPARISON}, so there is no verdict; make one with "
            "`adtower compare` or `adtower run`"
        )
    return Comparison.from_json(path.read_text(encoding="utf-8"))


def refuse_pickles(folder: Path) -> Path:
    """Look into every file of a model.

    Returns:
        The folder itself.

    Raises:
        ValueError: If a file is a pickle by its name or its first bytes.
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            start = file.read(2)
        if path.suffix in PICKLE_NAMES or start in PICKLE_STARTS:
            raise ValueError(
                f"{path.relative_to(folder)} is a pickle, which can run any code when it is "
                "loaded; nothing was registered"
            )
    return folder


def _register(
    journal: Journal, run_id: str, folder: Path, name: str, alias: Alias, tags: Mapping[str, str]
) -> tuple[str, str | None]:
    """Copy the model to its run and give it a version; returns that and the alias's last one."""
    from mlflow.exceptions import MlflowException

    client = Store(journal.uri, journal.experiment).client
    with store_alone(journal.uri):
        client.log_artifacts(run_id, str(folder), ARTIFACT)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
        version = str(
            client.create_model_version(name, source, run_id=run_id, tags=dict(tags)).version
        )
        before = client.get_registered_model(name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, version)
    return version, None if before is None else str(before)
