"""A claim on real queries and labels, repeated from import to report by one command."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from experiments.config import AbConfig, RunConfig
from experiments.importers import import_homedepot
from experiments.marketplace.world import simulate_log
from experiments.pipeline import RunResult, run
from experiments.progress import Progress, Silent
from experiments.records import read_json, write_json, write_metrics

HOMEDEPOT_REQUESTS = 40_000
"""Simulated requests over the real catalogue: about four a query."""

RECIPE = "made_with.json"
"""Beside the dataset that a claim made: the settings it was made with."""


def reproduce(
    name: str,
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Repeat a claim.

    Args:
        name: ``homedepot``: real queries, titles and human labels; clicks are simulated on them.
        source: Where the data lies; see ``homedepot_csv``.
        out: The run's folder; the dataset is made beside it, as ``OUT-data``.
        seed: Of the simulated log and of the run.
        overwrite: Replace an earlier run.
        progress: Told of the stages.

    Returns:
        The run. ``test.auc_2v0``, ``test.auc_2v1`` and ``test.auc_1v0`` in its metrics are those of
        the trained vectors' cosine on the human labels of held-out queries.

    Raises:
        ValueError: If the name is unknown, the data is not there, or ``OUT-data`` is something
            else.
    """
    if name != "homedepot":
        raise ValueError(f"nothing is called {name!r}; there is: homedepot")
    progress = progress or Silent()
    data = Path(out).with_name(f"{Path(out).name}-data")
    _make_homedepot(Path(source), data, seed=seed, overwrite=overwrite, progress=progress)
    config = RunConfig(
        data=data, out=out, seed=seed, overwrite=overwrite, ab=AbConfig(requests=20_000)
    )
    result = run(config, progress)
    for kind, place in (("dashclip", "test"), ("off_the_shelf", "test.off_the_shelf")):
        measures = result.embedding_evaluation.get(kind, {})
        for pair in ("auc_2v0", "auc_2v1", "auc_1v0"):
            if pair in measures:
                result.metrics[f"{place}.{pair}"] = measures[pair]
    write_metrics(Path(out) / "metrics.json", result.metrics)
    return result


def _make_homedepot(
    source: Path, data: Path, *, seed: int, overwrite: bool, progress: Progress
) -> None:
    """Import the labels and simulate shoppers on them, unless that was done already."""
    recipe = data / RECIPE
    made_with = {"seed": seed, "requests": HOMEDEPOT_REQUESTS}
    if recipe.is_file() and read_json(recipe) == made_with and not overwrite:
        return
    if data.exists() and not (overwrite and recipe.is_file()):
        raise ValueError(
            f"{data} exists and is not the Home Depot dataset of these settings; nothing was "
            "written. Choose another --out, or pass --overwrite to make it anew"
        )
    # Made under another name, so that what bears the right one is always whole.
    draft = data.with_name(f".{data.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with progress.stage("importing Home Depot"):
            made = import_homedepot(homedepot_csv(source, draft / "csv"), draft / "dataset")
        with progress.stage("simulating shoppers on it"):
            simulate_log(made, requests=HOMEDEPOT_REQUESTS, seed=seed)
        write_json(made / RECIPE, made_with)
        shutil.rmtree(data, ignore_errors=True)
        made.rename(data)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def homedepot_csv(source: Path, scratch: Path) -> Path:
    """Return a folder in the competition's layout.

    Args:
        source: That folder itself (it has a train.csv), or one with
            homedepot_relevance/pairs.parquet, whose pairs are written out as train.csv first.
        scratch: Where that is written.

    Raises:
        ValueError: If ``source`` is neither.
    """
    if (source / "train.csv").is_file():
        return source
    pairs = source / "homedepot_relevance" / "pairs.parquet"
    if not pairs.is_file():
        raise ValueError(
            f"{source} has neither train.csv (the competition's file, unpacked) nor "
            "homedepot_relevance/pairs.parquet"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    frame = pl.read_parquet(pairs)
    if "id" not in frame.columns:
        frame = frame.with_row_index("id")
    columns = ["id", "product_uid", "product_title", "search_term", "relevance"]
    latin1 = frame.select(columns).write_csv().encode("iso-8859-1", errors="replace")
    (scratch / "train.csv").write_bytes(latin1)
    return scratch
