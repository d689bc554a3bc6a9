"""The verbs of ``adtower embed`` over stores of vectors and over query encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from experiments.index_catalogue import IndexConfig
from experiments.terminal import JsonFile, new_progress, print_figures, say, write_figures

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


EMBED_INDEX_COMMANDS: dict[str, Callable[..., None]] = {
    "index": embed_index,
}
"""All of the above; ``experiments.__main__`` names them too."""
