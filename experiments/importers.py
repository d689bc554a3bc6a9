"""Public data sets in their original layout, made into datasets of ours.

Each function writes a dataset folder and returns its path. Nothing is downloaded.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from features.columns import TIME_DTYPE, as_frame
from features.dataset import write_dataset
from features.schema import DatasetSpec, FeatureNames

MODERATE_ABOVE, RELEVANT_ABOVE = 1.67, 2.5
"""Home Depot's mean rating (1 to 3) folded to classes: up to 1.67 irrelevant, up to 2.5 moderately
relevant, above relevant. Three raters gave most means, so these are 5/3 and 7.5/3."""

CLARA2_COLUMNS: Mapping[str, str] = {
    "user_id": "session",
    "request_id": "serp",
    "query_id": "query",
    "product_id": "url",
    "position": "rank",
    "clicked": "click",
}
"""Where clara2's table of pages keeps what the contract calls otherwise."""

FIRST_MOMENT = datetime(2020, 1, 1, tzinfo=UTC)
"""Where the made-up clock of a log without times begins."""

FASHION_ATTRIBUTES = {
    "gender": "gender",
    "masterCategory": "master_category",
    "subCategory": "sub_category",
    "baseColour": "base_colour",
    "season": "season",
    "usage": "usage",
}


def import_homedepot(csv_folder: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Make a dataset of the Home Depot search relevance competition's files.

    Reads ``train.csv`` (id, product_uid, product_title, search_term, relevance), and where they
    lie beside it ``product_descriptions.csv`` and ``attributes.csv`` (for the brand), all Latin-1
    as published. Products of the same title share a ``group_id``. A pair judged twice becomes
    one row with the mean of its ratings. There are no images, no categories and no clicks;
    ``adtower data simulate`` makes the last.

    Args:
        csv_folder: Folder of the competition's files, unpacked.
        out: Dataset folder to write.
        overwrite: Replace ``out`` if it exists.

    Returns:
        ``out``, with products, queries and relevance (label by rating; column ``rating``).

    Raises:
        ValueError: If a file or column is missing, a rating is not in [1, 3], or ``out`` exists.
    """
    folder = Path(csv_folder)
    pairs = _read_csv(
        folder / "train.csv", ["product_uid", "product_title", "search_term", "relevance"]
    ).with_columns(pl.col("relevance").cast(pl.Float64, strict=False))
    wrong = pairs.with_row_index().filter(~pl.col("relevance").is_between(1, 3).fill_null(False))
    if len(wrong):
        raise ValueError(
            f"{folder / 'train.csv'}: relevance in row {wrong['index'][0]} is not a rating from "
            f"1 to 3 ({len(wrong)} such rows); test.csv has no ratings, was it renamed?"
        )
    products = pairs.group_by("product_uid", maintain_order=True).agg(
        pl.col("product_title").first().alias("title")
    )
    products = products.rename({"product_uid": "product_id"})
    products = _with_groups(_with_homedepot_texts(products, folder))
    queries = pairs.select(pl.col("search_term").unique(maintain_order=True).alias("query"))
    queries = queries.select(pl.format("q{}", pl.int_range(pl.len())).alias("query_id"), "query")
    relevance = (
        pairs.join(queries, left_on="search_term", right_on="query", maintain_order="left")
        .group_by("query_id", pl.col("product_uid").alias("product_id"), maintain_order=True)
        .agg(pl.col("relevance").mean().alias("rating"))
        .with_columns(_classes(pl.col("rating")).alias("label"), pl.lit("human").alias("source"))
        .select("query_id", "product_id", "label", "source", "rating")
    )
    brand = ("products.brand",) if "brand" in products.columns else ()
    spec = DatasetSpec(
        name="homedepot",
        features=FeatureNames(sparse=("user_id", "query_id", "product_id", *brand)),
    )
    return write_dataset(
        out, spec, overwrite=overwrite, products=products, queries=queries, relevance=relevance
    )


def import_fashion(
    folder: str | Path, out: str | Path, *, embed_images: bool = True, overwrite: bool = False
) -> Path:
    """Make a dataset of the fashion product catalogue: products with images, no queries, no log.

    Two layouts are known: the published one, ``styles.csv`` with ``images/ID.jpg``, and a pair
    of parquet files, ``products.parquet`` with ``images*.parquet`` (id, jpeg). Category is the
    article type; products of the same title share a ``group_id``. The other attributes become
    columns of their own and no description is made of them: a text that spells out the category
    would let every category probe cheat.

    Args:
        folder: Folder in one of the layouts.
        out: Dataset folder to write.
        embed_images: Copy the encoded images into the products table, so that the dataset stands
            alone; False keeps paths to the files (for the 25 GB version of the pictures).
        overwrite: Replace ``out`` if it exists.

    Returns:
        ``out``, with the products table. A product without a picture has a null image.

    Raises:
        ValueError: If neither layout is there, a column is missing, or ``out`` exists.
    """
    folder = Path(folder)
    columns = ["id", "productDisplayName", "articleType", *FASHION_ATTRIBUTES]
    if (folder / "styles.csv").is_file():
        styles = _read_styles(folder / "styles.csv", columns)
        images = _image_files(folder / "images", styles["id"].to_list(), embed=embed_images)
        styles = styles.with_columns(image=images)
    elif (folder / "products.parquet").is_file():
        styles = _read_parquet(folder / "products.parquet", columns)
        packed = sorted(folder.glob("images*.parquet"))
        if not packed:
            raise ValueError(f"{folder} has products.parquet but no images*.parquet beside it")
        images = _read_parquet(packed[0], ["id", "jpeg"]).rename({"jpeg": "image"})
        images = images.unique("id", keep="first", maintain_order=True)
        styles = styles.join(images, on="id", how="left", maintain_order="left")
    else:
        raise ValueError(
            f"{folder} has neither styles.csv (with a folder images/) nor products.parquet (with "
            "images*.parquet); point at the unpacked catalogue"
        )
    products = styles.select(
        pl.col("id").alias("product_id"),
        pl.col("productDisplayName").alias("title"),
        "image",
        pl.col("articleType").alias("category"),
        *(pl.col(theirs).alias(ours) for theirs, ours in FASHION_ATTRIBUTES.items()),
    ).unique("product_id", keep="first", maintain_order=True)
    return write_dataset(
        out, DatasetSpec(name="fashion"), overwrite=overwrite, products=_with_groups(products)
    )


def import_clicks(
    table: Any,
    out: str | Path,
    *,
    columns: Mapping[str, str] = CLARA2_COLUMNS,
    name: str = "clicks",
    position_is_feature: bool = True,
    overwrite: bool = False,
) -> Path:
    """Make a dataset of impressions alone from a click log of ids, such as clara2.

    A log without times gets a clock that keeps its order: each request starts one second after
    the one before it, in order of first appearance in the file, from 2020-01-01 UTC. Such times
    order the split; hours, weekdays and 84-day windows made of them mean nothing.

    Args:
        table: A parquet file, or a polars, pandas or Arrow table.
        out: Dataset folder to write.
        columns: The table's column for each of the contract's (user_id, request_id, query_id,
            product_id, position, clicked; optionally time, purchased, bid_micros, propensity).
            The default is clara2's. Other columns are left out.
        name: What reports call the dataset.
        position_is_feature: List ``position`` among the features: right where the ranking is
            given and only clicks are to be predicted, wrong where the model will rank.
        overwrite: Replace ``out`` if it exists.

    Raises:
        ValueError: If a column is missing or named for nothing we know, or ``out`` exists.
    """
    known = [*CLARA2_COLUMNS, "time", "purchased", "bid_micros", "propensity"]
    unknown = sorted(set(columns) - set(known))
    missing = sorted(set(CLARA2_COLUMNS) - set(columns))
    if unknown or missing:
        raise ValueError(
            f"columns must name the source of {', '.join(CLARA2_COLUMNS)} and may name that of "
            f"{', '.join(known[len(CLARA2_COLUMNS) :])}; missing: {missing}, unknown: {unknown}"
        )
    wanted = list(columns.values())
    if isinstance(table, (str, Path)):
        log = _read_parquet(Path(table), wanted, keep_types=True)
    else:
        log = _with_columns(as_frame(table), wanted, "the table")
    log = log.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items())
    if "time" not in log.columns:
        log = log.with_columns(_clock(log["request_id"]).alias("time"))
    ids = ("user_id", "request_id", "query_id", "product_id")
    log = log.with_columns(pl.col(column).cast(pl.String) for column in ids)
    sparse = ("user_id", "query_id", "product_id")
    spec = DatasetSpec(
        name=name,
        features=FeatureNames(sparse=(*sparse, "position") if position_is_feature else sparse),
    )
    return write_dataset(out, spec, overwrite=overwrite, impressions=log)


def _classes(rating: pl.Expr) -> pl.Expr:
    # A mean of equal ratings may miss the boundary by a rounding error.
    slack = 1e-9
    return (rating > MODERATE_ABOVE + slack).cast(pl.Int8) + (rating > RELEVANT_ABOVE + slack).cast(
        pl.Int8
    )


def _with_homedepot_texts(products: pl.DataFrame, folder: Path) -> pl.DataFrame:
    descriptions = folder / "product_descriptions.csv"
    if descriptions.is_file():
        texts = _read_csv(descriptions, ["product_uid", "product_description"]).select(
            pl.col("product_uid").alias("product_id"),
            pl.col("product_description").alias("description"),
        )
        products = _joined(products, texts)
    attributes = folder / "attributes.csv"
    if attributes.is_file():
        brands = (
            _read_csv(attributes, ["product_uid", "name", "value"])
            .filter(pl.col("name") == "MFG Brand Name")
            .select(pl.col("product_uid").alias("product_id"), pl.col("value").alias("brand"))
        )
        products = _joined(products, brands)
    return products


def _joined(products: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    first = texts.unique("product_id", keep="first", maintain_order=True)
    return products.join(first, on="product_id", how="left", maintain_order="left")


def _with_groups(products: pl.DataFrame) -> pl.DataFrame:
    """Products of one title are one item listed twice; the first one's id names the group."""
    first = pl.col("product_id").first().over("title")
    return products.with_columns(
        group_id=pl.when(pl.col("title").is_null()).then("product_id").otherwise(first)
    )


def _clock(request_id: pl.Series) -> pl.Series:
    order = pl.DataFrame({"id": request_id.unique(maintain_order=True)}).with_row_index("second")
    seconds = pl.DataFrame({"id": request_id}).join(
        order, on="id", how="left", nulls_equal=True, maintain_order="left"
    )["second"]
    start_us = int(FIRST_MOMENT.timestamp()) * 1_000_000
    return (seconds.cast(pl.Int64) * 1_000_000 + start_us).cast(TIME_DTYPE)


def _read_csv(path: Path, columns: list[str]) -> pl.DataFrame:
    """Read a Latin-1 file with quoted fields; every column as text, empty as null."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; point at the folder of the unpacked files")
    try:
        frame = pl.read_csv(path, encoding="iso-8859-1", infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read as comma-separated text: {error}") from error
    return _with_columns(frame, columns, str(path))


def _read_styles(path: Path, columns: list[str]) -> pl.DataFrame:
    """Read ``styles.csv``, whose last field, the title, has commas that nobody quoted."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        _refuse_missing(header, columns, str(path))
        last = len(header) - 1
        records = []
        for row in rows:
            if row and len(row) <= last:
                raise ValueError(
                    f"{path}: line {rows.line_num} has {len(row)} fields where the header has "
                    f"{last + 1}; is the file cut short?"
                )
            if row:
                records.append([field or None for field in (*row[:last], ",".join(row[last:]))])
    schema = dict.fromkeys(header, pl.String)
    return pl.DataFrame(records, schema=schema, orient="row").select(columns)


def _image_files(folder: Path, ids: list[str], *, embed: bool) -> pl.Series:
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; the pictures ID.jpg belong there")
    paths = [folder / f"{id_}.jpg" for id_ in ids]
    if embed:
        return pl.Series([p.read_bytes() if p.is_file() else None for p in paths], dtype=pl.Binary)
    return pl.Series([str(p.resolve()) if p.is_file() else None for p in paths], dtype=pl.String)


def _read_parquet(path: Path, columns: list[str], *, keep_types: bool = False) -> pl.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    frame = _with_columns(frame, columns, str(path))
    return frame if keep_types else frame.with_columns(pl.col("id").cast(pl.String))


def _with_columns(frame: pl.DataFrame, columns: list[str], where: str) -> pl.DataFrame:
    _refuse_missing(frame.columns, columns, where)
    return frame.select(columns)


def _refuse_missing(present: list[str], columns: list[str], where: str) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(
            f"{where} has no column {', '.join(missing)}; it has {', '.join(present) or 'none'}"
        )
