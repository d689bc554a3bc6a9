"""Vectors judged without a click: how well they retrieve, separate classes and tell categories.

Shape letters: N pairs of held-out queries, R draws of queries, P products, D embedding size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from embeddings.evaluate import relevance_aucs
from embeddings.four_way_split import FourWaySplit, split_four_ways
from embeddings.geometry import MAX_ROWS, alignment, cloud, gap
from embeddings.probes import category_probes, probe_rows
from embeddings.query_bootstrap import Estimate, QueryDraws
from embeddings.query_rankings import RELEVANT
from embeddings.relevance_intervals import relevance_auc_draws
from embeddings.relevance_split import split_relevance
from embeddings.separation import separation
from experiments.embed_evaluation_config import JudgeVectorsConfig
from experiments.embedding_figures import write_cosine_figure, write_map_figure
from experiments.judged_vectors import OFF_THE_SHELF, Judged, JudgedSet, find_judged
from experiments.judgement import Judgement, Measure, measures_of
from experiments.more_labels import with_more_labels
from experiments.progress import Progress, Silent
from experiments.records import read_json, write_bytes, write_json
from experiments.retrieval_cells import judge_retrieval
from experiments.true_relevance import true_labels
from features.dataset import Dataset


def judge_vectors(
    vectors: Path,
    data: Path,
    out: Path,
    config: JudgeVectorsConfig | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Judge the vectors of a run, or of a folder, beside everything that they have to beat.

    Args:
        vectors: A run's folder, or one with the stores ``products`` and ``queries``.
        data: The dataset, with products, queries and relevance labels.
        out: Folder for ``evaluation.json``, ``evaluation.md``, ``figure_4.png`` and
            ``figure_5.png``; older ones there are replaced.
        config: Samples, draws and baselines.
        progress: Told of the stages.

    Returns:
        What was written to ``evaluation.json``.

    Raises:
        ValueError: If a table is missing, the labels are of one class, no query is held out, or
            the vectors are not of this dataset or of different sizes.
    """
    config, progress = config or JudgeVectorsConfig(), progress or Silent()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    dataset = Dataset.open(data)
    dataset.require("products", "queries", "relevance", needed_for="judging vectors")
    pairs = dataset.table("relevance")
    _refuse_one_class(pairs)
    split = _split(dataset, pairs, config.trained_on, vectors)
    held = pairs.filter(~split.seen_query_N)
    if held["label"].n_unique() < 2:
        raise ValueError(
            f"{len(held)} judged pairs have a query that training did not see, of "
            f"{held['label'].n_unique()} classes; judging needs two classes. Were the vectors "
            "trained on every query? Then judge them on other labels"
        )
    judged = find_judged(
        vectors,
        dataset,
        text_weights=config.text_weights,
        modalities=config.modalities,
        seed=config.seed,
        progress=progress,
    )
    notes = list(judged.notes)
    counts = {f"held_out_pairs_of_label_{n}": int((held["label"] == n).sum()) for n in (0, 1, 2)}
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in judged.by_name}
    with progress.stage("relevance and separation"):
        _add_relevance(estimates, judged, dataset, held, config)
    with progress.stage("retrieval") as report:
        found = judge_retrieval(
            judged,
            pairs,
            split,
            cutoffs=config.cutoffs,
            max_queries=config.queries,
            draws=config.draws,
            seed=config.seed,
            report=report,
        )
    counts |= found.counts
    notes += found.notes
    for name, values in found.estimates.items():
        estimates[name] |= values
    measures = measures_of(estimates, OFF_THE_SHELF, config.confidence)
    with progress.stage("categories and geometry") as report:
        for done, (name, one) in enumerate(judged.by_name.items(), 1):
            measures[name] |= _plain(one, dataset, held, config)
            report(done, len(judged.by_name), name)
    _note_samples(dataset, config, counts, notes)
    with progress.stage("figures"):
        files = _write_figures(out, judged, dataset, held, config, measures, notes)
    judgement = Judgement(
        subject=judged.subject,
        settings={"vectors": str(vectors), "data": str(data), **config.model_dump(mode="json")},
        counts=counts,
        notes=tuple(notes),
        measures=measures,
        files=files,
    )
    write_json(out / "evaluation.json", judgement.to_json())
    write_bytes(out / "evaluation.md", judgement.to_markdown().encode())
    return judgement


def _refuse_one_class(pairs: pl.DataFrame) -> None:
    classes = pairs["label"].unique().sort().to_list()
    if len(classes) < 2:
        raise ValueError(
            f"all {len(pairs)} labels of the relevance table are {classes[0]}; judging needs pairs "
            "of two classes out of 0, 1 and 2"
        )


def _split(
    dataset: Dataset, pairs: pl.DataFrame, trained_on: Path | None, vectors: Path
) -> FourWaySplit:
    products, queries = dataset.table("products"), dataset.table("queries")
    if trained_on is None:
        trained, _ = split_relevance(pairs, queries)
        run = vectors / "config.json"
        labels = read_json(run).get("labels", []) if run.is_file() else []
        trained = with_more_labels(trained, [Path(file) for file in labels], queries)
    else:
        trained = pl.read_parquet(trained_on)
        missing = {"query_id", "product_id"} - set(trained.columns)
        if missing:
            raise ValueError(
                f"{trained_on} lacks the columns {sorted(missing)}; it should name the pairs that "
                "the vectors learned from"
            )
    return split_four_ways(pairs, trained, products, queries)


def _add_relevance(
    estimates: dict[str, dict[str, Estimate]],
    judged: JudgedSet,
    dataset: Dataset,
    held: pl.DataFrame,
    config: JudgeVectorsConfig,
) -> None:
    """Add AUCs and separation over the pairs of held-out queries."""
    query_ids, product_ids = held["query_id"].to_list(), held["product_id"].to_list()
    draws = QueryDraws(query_ids, draws=config.draws, seed=config.seed)
    label_N = held["label"].to_numpy().astype(np.int64)
    labels = {"": label_N, "true_": true_labels(dataset, held)}
    for name, one in judged.by_name.items():
        score_N = one.scores.pairs(query_ids, product_ids)
        for prefix, class_N in labels.items():
            if class_N is None:
                continue
            drawn = relevance_auc_draws(
                score_N, class_N, query_ids, draws=config.draws, seed=config.seed
            )
            estimates[name] |= {
                prefix + key: Estimate(value=value, draw_R=drawn[key])
                for key, value in relevance_aucs(score_N, class_N).items()
            }
        estimates[name] |= separation(score_N, label_N, draws)


def _plain(
    one: Judged, dataset: Dataset, held: pl.DataFrame, config: JudgeVectorsConfig
) -> dict[str, Measure]:
    """Figures of the vectors themselves, which have no draws of queries."""
    if one.products is None:
        return {}
    products = dataset.table("products")
    values: dict[str, float] = {}
    rows = probe_rows(one.products, products, max_rows=config.probe_rows, seed=config.seed)
    if rows is not None:
        found = category_probes(rows, seed=config.seed)
        values |= {f"category.{key}": value for key, value in found.items()}
    if one.queries is not None:
        shape = cloud(one.products.vectors_VD, seed=config.seed)
        values |= {f"geometry.{key}": value for key, value in shape.items()}
        spread = cloud(one.queries.vectors_VD, seed=config.seed)
        for key in ("effective_rank", "uniformity", "anisotropy"):
            if key in spread:
                values[f"geometry.query_{key}"] = spread[key]
        positive = held.filter(pl.col("label") == RELEVANT)
        if len(positive):
            cosine_N = one.scores.pairs(
                positive["query_id"].to_list(), positive["product_id"].to_list()
            )
            values["geometry.alignment"] = alignment(cosine_N)
        between = gap(one.products.vectors_VD, one.queries.vectors_VD)
        if between is not None:
            values["geometry.query_product_gap"] = between
    return {key: Measure(value=value) for key, value in values.items()}


def _note_samples(
    dataset: Dataset, config: JudgeVectorsConfig, counts: dict[str, int], notes: list[str]
) -> None:
    products = dataset.table("products")
    counts["products"] = len(products)
    if "category" not in products.columns:
        notes.append("no categories were read: the products have no column category")
    elif len(products) > config.probe_rows:
        notes.append(f"categories: a sample of {config.probe_rows:,} of {len(products):,} products")
    if len(products) > MAX_ROWS:
        notes.append(
            f"effective rank and uniformity: a sample of {MAX_ROWS:,} of {len(products):,} products"
        )
    if config.trained_on is None:
        notes.append(
            "seen are the training pairs of a run of this dataset (MD5 of the query mod 10 above "
            "1); name others with --trained-on"
        )


def _write_figures(
    out: Path,
    judged: JudgedSet,
    dataset: Dataset,
    held: pl.DataFrame,
    config: JudgeVectorsConfig,
    measures: dict[str, dict[str, Measure]],
    notes: list[str],
) -> tuple[str, ...]:
    """Draw Figures 4 and 5, off the shelf first, and add the silhouettes to the measures."""
    shown = judged.named(OFF_THE_SHELF, judged.subject)
    files = [write_cosine_figure(out / "figure_5.png", shown, held)]
    try:
        silhouettes = write_map_figure(
            out / "figure_4.png",
            shown,
            dataset.table("products"),
            max_points=config.map_points,
            seed=config.seed,
        )
    except ValueError as error:
        notes.append(f"figure 4 was not drawn: {error}")
        return tuple(files)
    for name, value in silhouettes.items():
        measures[name]["category.silhouette"] = Measure(value=value)
    return ("figure_4.png", *files)
