"""The verb ``adtower embed evaluate``: vectors judged without a click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from experiments.embed_evaluation_config import JudgeVectorsConfig
from experiments.terminal import JsonFile, new_progress, print_measures, say, write_figures

JudgeSettings = tyro.conf.OmitArgPrefixes[Annotated[JudgeVectorsConfig, tyro.conf.arg(name="")]]
DEFAULTS = JudgeVectorsConfig()


def embed_evaluate(
    vectors: tyro.conf.Positional[Path],
    data: Path,
    out: Path,
    config: JudgeSettings = DEFAULTS,
    json: JsonFile = None,
) -> None:
    """Judge vectors without clicks: retrieval, relevance classes, categories, geometry.

    Beside them stand random vectors, TF-IDF, BM25, the frozen off-the-shelf encoder and, where the
    run has them, stage 1 and each modality alone. Intervals draw whole queries anew.

    Args:
        vectors: Folder of a run, or one with the stores products and queries.
        data: The dataset, with products, queries and relevance labels.
        out: Folder for evaluation.json, evaluation.md, figure_4.png and figure_5.png.
        config: Samples, draws and baselines.
        json: Also write the figures there, flat: NAME.figure, with .low, .high and .delta.
    """
    from experiments.embed_evaluation import judge_vectors

    judgement = judge_vectors(vectors, data, out, config, new_progress())
    values = {
        name: {_short(key): one.value for key, one in measures.items()}
        for name, measures in judgement.measures.items()
    }
    rank = config.cutoffs[0]
    print_measures(
        f"{judgement.subject} and what stands beside it, on held-out queries",
        values,
        (f"recall@{rank}", f"ndcg@{rank}", "map", "mrr", "auc_2v0", "auc_2v1", "auc_1v0",
         "true_auc_2v1", "ks_2v1", "overlap_2v1"),
    )  # fmt: skip
    print_measures(
        "product vectors",
        values,
        ("knn_f1", "linear_f1", "mlp_f1", "silhouette", "effective_rank", "uniformity",
         "anisotropy", "alignment", "query_product_gap"),
    )  # fmt: skip
    for note in judgement.notes:
        say(f"note: {note}")
    say(f"tables with intervals: {out / 'evaluation.md'}")
    write_figures(json, judgement.to_metrics())


def _short(key: str) -> str:
    return key.removeprefix("category.").removeprefix("geometry.")


EMBED_EVALUATE_COMMANDS: dict[str, Callable[..., None]] = {"evaluate": embed_evaluate}
"""All of the above; ``experiments.__main__`` names them too."""
