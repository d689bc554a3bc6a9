"""A catalogue embedded shard by shard is the catalogue embedded at once, whoever embeds it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embeddings import index_shards
from embeddings.image_encoder import ImageShape
from embeddings.index_shards import IndexPlan, read_record
from embeddings.model import DashClip
from embeddings.parquet_rows import ParquetRows, digest_of_rows
from embeddings.store import VectorStore
from embeddings.weights import find_text_weights
from experiments import index_catalogue as index
from experiments.index_catalogue import IndexConfig, index_catalogue

ROOT = Path(__file__).parents[2]
SMALL = IndexConfig(shard_rows=10)


def new_model(tiny_weights, stage=2):
    model = DashClip.initial(
        find_text_weights(str(tiny_weights)),
        image=ImageShape(pixels=16, patch=8, width=32, layers=1, heads=2),
        fusion_layers=1,
        trainable_text_layers=1,
        embedding_dim=16,
        text_columns=("title",),
        max_text_tokens=8,
        max_query_tokens=8,
        generator=torch.Generator().manual_seed(0),
    )
    if stage == 2:
        torch.manual_seed(1)
        model = model.with_alignment(1, 8)
    model.stage = stage
    return model


@pytest.fixture(scope="module")
def model_folder(tiny_weights, tmp_path_factory):
    return new_model(tiny_weights).save_(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def source(products, tmp_path):
    path = tmp_path / "products.parquet"
    products.write_parquet(path, row_group_size=7)
    return path


def store_bytes(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def failing_at(shard, error):
    """``embed_shard``, but one shard fails."""
    whole = index_shards.embed_shard

    def embed(work, at, redo_changed):
        if at == shard:
            raise error
        return whole(work, at, redo_changed)

    return embed


def test_a_catalogue_in_shards_is_the_catalogue_at_once(model_folder, source, products, tmp_path):
    indexed = index_catalogue(model_folder, source, tmp_path / "store", SMALL)
    store = VectorStore.open(tmp_path / "store", DashClip.load(model_folder).fingerprint)
    assert store.ids == tuple(products["product_id"])
    model = DashClip.load(model_folder)
    np.testing.assert_allclose(store.vectors_VD, model.embed_products(products), atol=1e-5)
    assert store.manifest == indexed.manifest
    assert (store.manifest.kind, store.manifest.unit_length) == ("product/multimodal", True)
    assert store.manifest.preprocessing["max_tokens"] == 8
    assert (indexed.rows, indexed.made_rows) == (48, 48)
    assert not (tmp_path / "store.shards").exists()


def test_any_texts_are_embedded_by_the_query_encoder(model_folder, queries, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    renamed = queries.rename({"query_id": "key", "query": "words"})
    renamed[:20].write_parquet(folder / "a.parquet")
    renamed[20:].write_parquet(folder / "b.parquet")
    config = IndexConfig(what="queries", id_column="key", text_column="words", shard_rows=13)
    index_catalogue(model_folder, folder, tmp_path / "store", config)
    store = VectorStore.open(tmp_path / "store")
    assert store.ids == tuple(queries["query_id"])
    expected = DashClip.load(model_folder).embed_queries(queries["query"].to_list())
    np.testing.assert_allclose(store.vectors_VD, expected, atol=1e-5)


def test_the_order_in_which_shards_are_made_changes_no_byte(model_folder, source, tmp_path):
    index_catalogue(model_folder, source, tmp_path / "forward", SMALL)
    work = tmp_path / "backward.shards"
    index_shards.begin_(work, index.plan_index(model_folder, source, SMALL))
    for shard in (4, 2, 3, 0, 1):
        index_shards.embed_shard(str(work), shard, False)
    assert index_catalogue(model_folder, source, tmp_path / "backward", SMALL).made_rows == 0
    assert store_bytes(tmp_path / "backward") == store_bytes(tmp_path / "forward")


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(model_folder, source, tmp_path):
    for count in (1, 2):
        config = SMALL.model_copy(update={"workers": f"local:{count}"})
        index_catalogue(model_folder, source, tmp_path / f"by{count}", config)
    assert store_bytes(tmp_path / "by1") == store_bytes(tmp_path / "by2")


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_process(model_folder, source, tmp_path):
    pytest.importorskip("ray")
    code = (
        "from experiments.index_catalogue import IndexConfig, index_catalogue\n"
        "import sys\n"
        "index_catalogue(*sys.argv[1:], IndexConfig(shard_rows=10, workers='ray:2'))\n"
    )
    command = [sys.executable, "-c", code, str(model_folder), str(source), str(tmp_path / "ray")]
    subprocess.run(command, check=True, cwd=ROOT)
    index_catalogue(model_folder, source, tmp_path / "one", SMALL)
    assert store_bytes(tmp_path / "ray") == store_bytes(tmp_path / "one")


@pytest.mark.slow
def test_ranks_of_torchrun_give_the_bytes_of_one_process(model_folder, source, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "experiments", "embed", "index"]
    command += ["--model", model_folder, "--data", source, "--out", tmp_path / "ranks"]
    subprocess.run([*map(str, command), "--shard-rows", "10"], check=True, cwd=ROOT)
    index_catalogue(model_folder, source, tmp_path / "one", SMALL)
    assert store_bytes(tmp_path / "ranks") == store_bytes(tmp_path / "one")


def test_an_interrupted_run_makes_only_what_is_missing(model_folder, source, tmp_path, monkeypatch):
    index_catalogue(model_folder, source, tmp_path / "whole", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(index, "embed_shard", failing_at(3, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            index_catalogue(model_folder, source, tmp_path / "cut", SMALL)
    assert not (tmp_path / "cut").exists()
    indexed = index_catalogue(model_folder, source, tmp_path / "cut", SMALL)
    assert indexed.made_rows == 18
    assert store_bytes(tmp_path / "cut") == store_bytes(tmp_path / "whole")


def test_a_damaged_shard_is_made_again(model_folder, source, tmp_path):
    keep = SMALL.model_copy(update={"keep_shards": True})
    index_catalogue(model_folder, source, tmp_path / "s", keep)
    before = store_bytes(tmp_path / "s")
    shard = tmp_path / "s.shards" / "shard-000001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert index_catalogue(model_folder, source, tmp_path / "s", keep).made_rows == 10
    assert store_bytes(tmp_path / "s") == before


def test_rows_that_changed_are_refused_or_embedded_again_alone(
    model_folder, source, products, tmp_path
):
    keep = SMALL.model_copy(update={"keep_shards": True})
    index_catalogue(model_folder, source, tmp_path / "s", keep)
    title = pl.when(pl.col("product_id") == "p25").then(pl.lit("old pan")).otherwise("title")
    changed = products.with_columns(title.alias("title"))
    changed.write_parquet(source)
    with pytest.raises(ValueError, match=r"rows 20 to 29 .* changed after shard 2 was made"):
        index_catalogue(model_folder, source, tmp_path / "s", keep)
    again = keep.model_copy(update={"redo_changed": True})
    assert index_catalogue(model_folder, source, tmp_path / "s", again).made_rows == 10
    index_catalogue(model_folder, source, tmp_path / "anew", SMALL)
    assert store_bytes(tmp_path / "s") == store_bytes(tmp_path / "anew")


def test_a_table_that_grew_costs_its_new_shards(model_folder, source, products, tmp_path):
    keep = SMALL.model_copy(update={"keep_shards": True})
    products[:35].write_parquet(source)
    index_catalogue(model_folder, source, tmp_path / "s", keep)
    products.write_parquet(source)
    assert index_catalogue(model_folder, source, tmp_path / "s", keep).made_rows == 18
    assert len(VectorStore.open(tmp_path / "s").ids) == 48


def test_shards_of_another_model_are_refused(
    model_folder, source, tiny_weights, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(index, "embed_shard", failing_at(1, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            index_catalogue(model_folder, source, tmp_path / "s", SMALL)
    other = new_model(tiny_weights)
    torch.nn.init.constant_(other.temperature, 0.2)
    folder = other.save_(tmp_path / "other")
    with pytest.raises(ValueError, match="shards of another run: model_fingerprint was"):
        index_catalogue(folder, source, tmp_path / "s", SMALL)
    index_catalogue(folder, source, tmp_path / "s", SMALL, overwrite=True)
    assert VectorStore.open(tmp_path / "s", other.fingerprint).ids[0] == "p0"


def test_a_model_of_another_stage_and_a_folder_without_one_are_refused(
    tiny_weights, source, tmp_path
):
    new_model(tiny_weights, stage=1).save_(tmp_path / "model1")
    with pytest.raises(ValueError, match="after stage 1, but stage=2"):
        index_catalogue(tmp_path / "model1", source, tmp_path / "s")
    with pytest.raises(ValueError, match="neither a model nor a run"):
        index_catalogue(tmp_path, source, tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("product_id"), "has no column 'product_id'"),
        (lambda t: t.select("product_id", "category"), "has neither of what mode"),
        (lambda t: t.with_columns(product_id=pl.col("product_id").replace("p30", "p2")),
         "id 'p2' appears twice, in rows 2 and 30"),
        (lambda t: t.with_columns(product_id=pl.col("product_id").replace("p30", None)),
         "product_id is null in row 30"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_store_is_refused_before_anything_is_embedded(
    model_folder, products, tmp_path, change, message
):
    change(products).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message):
        index_catalogue(model_folder, tmp_path / "t.parquet", tmp_path / "s", SMALL)
    assert not list(tmp_path.glob("s.shards/*.npy"))


def test_a_disk_that_is_too_full_is_told_before_and_in_the_midst(
    model_folder, source, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 48 * 16 * 4 * 2 - 1})
        patch.setattr(index.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="MB are still needed"):
            index_catalogue(model_folder, source, tmp_path / "s", SMALL)
    whole = index_shards.write_whole_

    def full(path, content):
        if path.name == "shard-000002.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(index_shards, "write_whole_", full)
        with pytest.raises(OSError, match="finished shards stay"):
            index_catalogue(model_folder, source, tmp_path / "s", SMALL)
    assert read_record(tmp_path / "s.shards", 1) is not None
    assert index_catalogue(model_folder, source, tmp_path / "s", SMALL).made_rows == 28


def test_a_store_is_not_made_twice_unasked(model_folder, source, tmp_path):
    index_catalogue(model_folder, source, tmp_path / "s", SMALL)
    with pytest.raises(ValueError, match="exists already"):
        index_catalogue(model_folder, source, tmp_path / "s", SMALL)


def test_the_plan_fixes_threads_and_arithmetic_and_leaves_the_process_as_it_was(
    model_folder, source, tmp_path
):
    threads = torch.get_num_threads()
    plan = index.plan_index(model_folder, source, SMALL)
    assert IndexPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.threads == 1
    index_catalogue(model_folder, source, tmp_path / "s", SMALL)
    assert torch.get_num_threads() == threads
    computation = VectorStore.open(tmp_path / "s").manifest.computation
    assert computation["precision"] == str(
        DashClip.load(model_folder).precision.dtype
    ).removeprefix("torch.")


def test_any_rows_of_files_are_read_as_a_table_would_be_sliced(tmp_path):
    table = pl.DataFrame({"id": [str(i) for i in range(50)], "x": list(range(50))})
    table[:23].write_parquet(tmp_path / "a.parquet", row_group_size=5)
    table[23:].write_parquet(tmp_path / "b.parquet", row_group_size=100)
    rows = ParquetRows.at(tmp_path)
    assert rows.count == 50
    for start, stop in ((0, 50), (0, 1), (4, 6), (20, 30), (49, 50), (22, 24), (5, 10)):
        assert rows.read(start, stop, ["x"])["x"].to_list() == list(range(start, stop))
    assert pl.concat(rows.batches(["id", "x"])).equals(table)


def test_a_digest_changes_with_any_value_and_with_nothing_else(products):
    whole = digest_of_rows(products)
    assert digest_of_rows(products.clone().rechunk()) == whole
    for name in ("product_id", "title", "image"):
        value = products[name][7]
        other = value + (b"x" if name == "image" else "x")
        column = pl.Series(name, [*products[name][:7], other, *products[name][8:]])
        assert digest_of_rows(products.with_columns(column)) != whole
