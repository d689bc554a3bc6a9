"""The verbs of ``adtower embed`` over stores of vectors and over query encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from embeddings.approximate_index import ApproximateConfig
from embeddings.store_forms import FormConfig
from experiments.index_catalogue import IndexConfig
from experiments.terminal import JsonFile, new_progress, print_figures, say, write_figures

FormSettings = tyro.conf.OmitArgPrefixes[Annotated[FormConfig, tyro.conf.arg(name="")]]
ApproximateSettings = tyro.conf.OmitArgPrefixes[
    Annotated[ApproximateConfig, tyro.conf.arg(name="")]
]
IndexSettings = tyro.conf.OmitArgPrefixes[Annotated[IndexConfig, tyro.conf.arg(name="")]]


def embed_index(
    model: Path,
    data: Path,
    out: Path,
    config: IndexSettings = IndexConfig(),  # noqa: B008
    overwrite: bool = False,
    json: JsonFile = None,
) -> None:
    """Embed a catalogue, or any texts, to a vector store in memory that does not grow with it.

    The store has the same bytes whatever the workers. An interrupted command goes on from its
    finished shards (OUT.shards) when it is given again; under torchrun the ranks share them.

    Args:
        model: Folder of a trained model, or of the run that trained it.
        data: A parquet file, a folder of parquet files, or a dataset.
        out: Folder of the store.
        config: What is embedded, and by whom.
        overwrite: Begin anew and replace the store.
        json: Also write the figures there, flat.
    """
    from experiments.index_catalogue import index_catalogue

    indexed = index_catalogue(
        model, data, out, config, overwrite=overwrite, progress=new_progress()
    )
    if indexed is None:
        return
    print_figures(str(out), indexed.to_metrics())
    say(f"vectors: {indexed.store}, encoder {indexed.manifest.encoder_fingerprint[:12]}")
    write_figures(json, indexed.to_metrics())


def embed_compact(
    store: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    config: FormSettings = FormConfig(),  # noqa: B008
    query_vectors: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Make a store smaller, if it still finds what float32 finds; refuse with figures if not.

    Args:
        store: Folder of a store, float32.
        out: Folder of the compact store.
        config: The form and its gate.
        query_vectors: Store of query vectors that judge it; rows of the store itself by default.
        json: Also write the gate's figures there, flat.
    """
    from embeddings.store import VectorStore
    from embeddings.store_forms import compact_

    judging = None if query_vectors is None else VectorStore.open(query_vectors)
    with new_progress().stage("making the store smaller"):
        made = compact_(VectorStore.open(store), out, config, queries=judging).manifest
    figures = {
        "retention": made.gate["retention"],
        "standard_error": made.gate["standard_error"],
        "minimum": made.gate["minimum"],
        "bytes_per_vector": float(made.bytes_per_vector),
        **{f"tried.{name}": kept for name, kept in made.gate["tried"].items()},
    }
    print_figures(f"{made.form}, {made.dim} dimensions", figures)
    say(f"compact store: {out}, judged by {made.gate['queries']} of {made.gate['queries_from']}")
    write_figures(json, figures)


def embed_approximate(
    store: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    config: ApproximateSettings = ApproximateConfig(),  # noqa: B008
    query_vectors: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Build an approximate index over a store (extra `index`), if its recall suffices.

    Args:
        store: Folder of a store, float32.
        out: Folder of the index; it opens beside this store alone.
        config: The graph and its gate.
        query_vectors: Store of query vectors that judge it; rows of the store itself by default.
        json: Also write the recall there, flat.
    """
    from embeddings.approximate_index import ApproximateIndex
    from embeddings.store import VectorStore

    judging = None if query_vectors is None else VectorStore.open(query_vectors)
    with new_progress().stage("building the index"):
        index = ApproximateIndex.build_(VectorStore.open(store), out, config, queries=judging)
    recall = index.manifest.recall
    figures = {name: float(recall[name]) for name in ("recall", "standard_error", "minimum", "k")}
    print_figures(f"{index.manifest.count} vectors", figures)
    say(f"index: {out}, judged by {recall['queries']} of {recall['queries_from']}")
    write_figures(json, figures)


def embed_export(
    model: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], stage: int = 2
) -> None:
    """Write a query encoder as a folder that SentenceTransformer(OUT) opens, with equal output.

    Args:
        model: Folder of a trained model, or of the run that trained it.
        out: The folder; it must not exist.
        stage: The stage that the model must have gone through.
    """
    from embeddings.model import DashClip
    from embeddings.sentence_transformer_form import write_sentence_transformer_
    from experiments.index_catalogue import find_model

    loaded = DashClip.load(find_model(model, stage))
    say(f"query encoder: {write_sentence_transformer_(loaded, out)}")


EMBED_INDEX_COMMANDS: dict[str, Callable[..., None]] = {
    "index": embed_index,
    "compact": embed_compact,
    "approximate": embed_approximate,
    "export": embed_export,
}
"""All of the above; ``experiments.__main__`` names them too."""
