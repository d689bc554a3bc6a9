"""A claim on real queries and labels, repeated from import to figures by one command."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from embeddings.relevance.judge import train_judge
from embeddings.relevance.judge_config import JudgeConfig
from embeddings.relevance.label_parquet import label_parquet, write_table_
from embeddings.relevance_split import split_relevance
from embeddings.stage1 import train_stage1
from embeddings.stage1_config import Stage1Config
from embeddings.stage2 import train_stage2
from embeddings.stage2_config import Stage2Config
from experiments.commands import embed
from experiments.config import AbConfig, EmbedConfig, RunConfig
from experiments.homedepot_figures import added_figures, judge_figures, stored_figures
from experiments.homedepot_labels import pairs_to_judge, with_chances
from experiments.importers import import_homedepot
from experiments.marketplace.world import simulate_log
from experiments.pipeline import RunResult, run
from experiments.progress import Progress, Silent
from experiments.records import read_json, read_metrics, write_json, write_metrics
from features.dataset import Dataset, write_into_dataset

HOMEDEPOT_REQUESTS = 40_000
"""Simulated requests over the real catalogue: about four a query."""

STAGE1 = Stage1Config(fusion_layers=1, max_text_tokens=32, embedding_dim=384, stem_blocks=())
"""There are no images, so stage 1 trains nothing and only says what the encoders are."""

STAGE2 = Stage2Config(
    end_to_end=True,
    query_layers=1,
    projection_width=0,
    class_ratio=(3, 3, 2),
    batch=32,
    steps=1500,
    warmup_steps=80,
    learning_rate=2e-4,
    text_learning_rate=2e-4,
    query_learning_rate=2e-4,
    weight_decay=0.01,
    temperature=0.05,
    contrast_weight=0.2,
    ema_decay=None,
    token_dropout=0.1,
)
"""Titles say all there is, so every layer of the text encoder trains: about five times over the
queries."""

JUDGE = JudgeConfig(text_columns=("title",))

JUDGED_PER_QUERY = 4
"""Unjudged products of each training query that the judge labels."""
TO_JUDGE, JUDGED = "to_judge.parquet", "judged.parquet"
"""The pairs that it labels and its labels, beside the judge."""
PAIRS_AT_A_TIME = 5000
"""That it labels: what an interruption costs at most."""

RECIPE = "made_with.json"
"""Beside the dataset that a claim made: the settings it was made with."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a repeated claim found."""

    metrics: dict[str, float]
    """Flat, as in ``metrics.json``."""
    run: RunResult | None
    """The click models, where clicks were asked for."""


def reproduce(
    name: str,
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    clicks: bool = False,
    ablate: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Claim:
    """Repeat a claim.

    Args:
        name: ``homedepot``: real queries, titles and human labels.
        source: Where the data lies; see ``homedepot_csv``.
        out: The run's folder; beside it are made the dataset, as ``OUT-data``, and the judge and
            whatever else is trained, in ``OUT-models``. What was cut off goes on.
        seed: Of all training, and of the simulated log.
        clicks: Also simulate shoppers on these queries and compare click models.
        ablate: Also train on the human labels alone, and say what the judge's add; takes two
            thirds as long again.
        overwrite: Replace an earlier run.
        progress: Told of the stages.

    Returns:
        ``test.auc_2v0``, ``test.auc_2v1`` and ``test.auc_1v0`` are those of the trained vectors'
        cosine on the human labels of held-out queries, ``test.off_the_shelf.`` the frozen
        encoder's, ``judge.`` the judge's (``judge.kappa`` is quadratic, ``judge.rmse`` in grades
        of the rating from 1 to 3), ``human_alone.`` those without the judge's labels and
        ``judge_labels.delta_`` what these add; ends of 95% intervals over queries as ``_low`` and
        ``_high``.

    Raises:
        ValueError: If the name is unknown, the data is not there, or a folder is something else.
    """
    if name != "homedepot":
        raise ValueError(f"nothing is called {name!r}; there is: homedepot")
    progress, out = progress or Silent(), Path(out)
    data, models = (out.with_name(f"{out.name}-{what}") for what in ("data", "models"))
    _make_homedepot(
        Path(source), data, seed=seed, clicks=clicks, overwrite=overwrite, progress=progress
    )
    dataset = Dataset.open(data)
    products, queries = dataset.table("products"), dataset.table("queries")
    human, test = split_relevance(dataset.table("relevance"), queries)
    _begin_models(models, seed, overwrite=overwrite)
    judge = train_judge(
        products, queries, human, JUDGE, seed=seed, out=models / "judge", progress=progress.steps
    )
    if not (models / JUDGED).is_file():
        with progress.stage("the judge labels") as report:
            asked = pairs_to_judge(products, queries, human, JUDGED_PER_QUERY)
            write_table_(asked, models / TO_JUDGE)
            label_parquet(
                judge,
                products,
                queries,
                models / TO_JUDGE,
                models / JUDGED,
                part_rows=PAIRS_AT_A_TIME,
                progress=lambda done, total: report(done, total, "pairs"),
            )
    human_alone = None
    if ablate:
        human_alone = train_stage2(
            train_stage1(products, STAGE1, seed=seed),
            products,
            queries,
            human,
            STAGE2,
            seed=seed + 1,
            out=models / "human_alone",
            progress=progress.steps,
        )
    common: dict[str, Any] = {
        "data": data,
        "out": out,
        "seed": seed,
        "overwrite": overwrite,
        "stage1": STAGE1,
        "stage2": STAGE2,
        "labels": (models / JUDGED,),
    }
    line = None
    if clicks:
        line = run(RunConfig(**common, ab=AbConfig(requests=20_000)), progress)
    else:
        embed(EmbedConfig(**common, sources=("off_the_shelf", "dashclip")), progress)
    with progress.stage("judging by the human labels of held-out queries"):
        found = read_metrics(out / "metrics.json") | stored_figures(out, test)
        found |= judge_figures(judge, products, queries, test)
        if human_alone is not None:
            found |= added_figures(human_alone, out, products, queries, test)
    write_metrics(out / "metrics.json", found)
    if line is not None:
        line.metrics.update(found)
    return Claim(metrics=found, run=line)


def _begin_models(models: Path, seed: int, *, overwrite: bool) -> None:
    """Make the folder of what a claim trains beside its run, or take up that of these settings."""
    settings = {"judge": JUDGE, "stage1": STAGE1, "stage2": STAGE2}
    made_with = {
        "seed": seed,
        "judged_per_query": JUDGED_PER_QUERY,
        **{name: config.model_dump(mode="json") for name, config in settings.items()},
    }
    recipe = models / RECIPE
    if recipe.is_file() and read_json(recipe) == made_with:
        return
    if models.exists():
        if not (overwrite and recipe.is_file()):
            raise ValueError(
                f"{models} exists and does not hold the models of these settings; nothing was "
                "written. Choose another --out, or pass --overwrite to train them anew"
            )
        shutil.rmtree(models)
    models.mkdir(parents=True)
    write_json(recipe, made_with)


def _make_homedepot(
    source: Path, data: Path, *, seed: int, clicks: bool, overwrite: bool, progress: Progress
) -> None:
    """Import the labels and, if asked, simulate shoppers on them, unless that was done already."""
    recipe = data / RECIPE
    made_with = {"seed": seed, "requests": HOMEDEPOT_REQUESTS if clicks else 0}
    if recipe.is_file() and read_json(recipe) == made_with:
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
            dataset = Dataset.open(made)
            relevance = with_chances(dataset.table("relevance"))
            write_into_dataset(made, dataset.spec, relevance=relevance)
        if clicks:
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
