"""The verbs of ``adtower features``: build the features of a log of any size."""

from __future__ import annotations

from pathlib import Path

from tyro.extras import SubcommandApp

from experiments.terminal import JsonFile, new_progress, print_figures, write_figures

features_app = SubcommandApp()


@features_app.command(name="build")
def features_build(
    data: str,
    out: Path,
    partitions: int | None = None,
    workers: str = "local:2",
    seed: int = 0,
    min_count: int = 2,
    vectors: Path | None = None,
    start_from: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Fit all features on the training rows and write every row as shuffled arrays on disk.

    Memory is bounded by a partition of users, not by the log. The result is the same to the byte
    whatever the partitions and workers. An interrupted build goes on when its command is repeated.

    Args:
        data: A dataset: a folder (or fsspec URI) with a dataset.toml.
        out: Folder for the arrays of train, validation and test, the fitted features and the
            manifest.
        partitions: Parts that users are dealt into; by default some 500,000 rows each.
        workers: local:N for N processes here; ray or ray:N for Ray Data (extra `ray`).
        seed: Of the order of the training rows.
        min_count: Training rows in which a value must appear to get a row of its own.
        vectors: Folder with the stores `products` and `queries`, where similarity_bins of
            [features] asks for cosines.
        start_from: Features of an earlier run (RUN/features) or build (OUT/features) to go on
            from: known values keep their rows and scales stay, for `adtower train --start-from`.
        json: Also write rows, columns and collisions there.
    """
    from embeddings.store import VectorStore
    from features.build import build_features

    stores = None
    if vectors is not None:
        stores = (VectorStore.open(vectors / "products"), VectorStore.open(vectors / "queries"))
    with new_progress().stage("building features") as report:
        arrays = build_features(
            data,
            out,
            partitions=partitions,
            workers=workers,
            seed=seed,
            min_count=min_count,
            vectors=stores,
            start_from=start_from,
            report=report,
        )
    figures: dict[str, float] = {
        **{f"rows.{part}": float(rows) for part, rows in arrays.manifest["rows"].items()},
        "sparse_columns": float(len(arrays.manifest["sparse_names"])),
        "dense_columns": float(len(arrays.manifest["dense_names"])),
        **{
            f"collision_share.{name}": share
            for name, share in arrays.manifest["collision_share"].items()
        },
    }
    print_figures(str(out), figures)
    write_figures(json, figures)
