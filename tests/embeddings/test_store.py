import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from embeddings.store import VectorStore
from features.embedding_join import join_vectors

IDS = ["a", "b", "ü/ü", "d"]


@pytest.fixture
def vectors():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def store(tmp_path, vectors):
    return VectorStore.write_(
        tmp_path / "s", IDS, vectors, kind="product/multimodal", encoder_fingerprint="enc"
    )


def test_a_round_trip_keeps_every_bit(store, vectors, tmp_path):
    again = VectorStore.open(tmp_path / "s", expect_fingerprint=store.fingerprint)
    assert isinstance(again.vectors_VD, np.memmap)
    np.testing.assert_array_equal(again.vectors_VD, vectors)
    assert again.ids == tuple(IDS)
    assert again.manifest.unit_length
    np.testing.assert_array_equal(again.row_of(["d", "nobody", "ü/ü"]), [3, -1, 2])
    assert again.row_of([]).shape == (0,)
    in_memory = VectorStore.from_arrays(
        IDS, vectors, kind="product/multimodal", encoder_fingerprint="enc"
    )
    assert in_memory.fingerprint == again.fingerprint


def test_a_store_is_a_vector_table(store):
    joined = join_vectors(store, store, ["d", "nobody"], ["a"])
    assert joined.product_present_P.tolist() == [True, False]
    np.testing.assert_array_equal(joined.product_PD[0], store.vectors_VD[3])


@pytest.mark.parametrize("name", ["vectors.npy", "ids.json"])
def test_one_flipped_bit_is_refused(store, tmp_path, name):
    path = tmp_path / "s" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        VectorStore.open(tmp_path / "s")


def test_a_truncated_file_and_another_format_are_refused(store, tmp_path):
    path = tmp_path / "s" / "vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="cannot be read"):
        VectorStore.open(tmp_path / "s")
    path.write_bytes(whole)
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "other"}))
    with pytest.raises(ValueError, match="format 'other'"):
        VectorStore.open(tmp_path / "s")


def test_vectors_of_another_encoder_are_refused(store, tmp_path):
    assert VectorStore.open(tmp_path / "s", expect_fingerprint="enc").ids == tuple(IDS)
    with pytest.raises(ValueError, match="was expected"):
        VectorStore.open(tmp_path / "s", expect_fingerprint="another encoder")


@pytest.mark.parametrize(
    ("ids", "change", "message"),
    [
        (["a", "b", "a", "d"], lambda x: x, "appears twice"),
        (["a", "b", "c"], lambda x: x, "one row an id"),
        (IDS, lambda x: np.where(x == x.max(), np.nan, x), "NaN"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_is_written(tmp_path, vectors, ids, change, message):
    with pytest.raises(ValueError, match=message):
        VectorStore.write_(
            tmp_path / "s", ids, change(vectors), kind="k", encoder_fingerprint="enc"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_store_replaces_a_store_but_nothing_else(store, tmp_path, vectors):
    VectorStore.write_(tmp_path / "s", IDS[:2], vectors[:2], kind="k", encoder_fingerprint="new")
    assert VectorStore.open(tmp_path / "s").ids == ("a", "b")
    (tmp_path / "letters").mkdir()
    with pytest.raises(ValueError, match="not a vector store"):
        VectorStore.write_(tmp_path / "letters", IDS, vectors, kind="k", encoder_fingerprint="e")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letters", "s"]


def test_parquet_holds_the_same_vectors(store, tmp_path):
    table = pl.read_parquet(store.to_parquet_(tmp_path / "v.parquet"))
    assert table["id"].to_list() == IDS
    np.testing.assert_array_equal(table["vector"].to_numpy(), store.vectors_VD)


def test_parquet_brings_the_whole_store_back(store, tmp_path):
    path = store.to_parquet_(tmp_path / "v.parquet")
    again = VectorStore.from_parquet(path)
    assert (again.ids, again.manifest) == (store.ids, store.manifest)
    with pytest.raises(ValueError, match="does not have the encoder_fingerprint of the manifest"):
        VectorStore.from_parquet(path, encoder_fingerprint="another")
    table = pl.read_parquet(path)
    changed = table.with_columns(id=pl.Series(["a", "b", "c", "d"]))
    changed.write_parquet(path, metadata=pl.read_parquet_metadata(path))
    with pytest.raises(ValueError, match="ids_sha256 of the manifest"):
        VectorStore.from_parquet(path)


def test_a_parquet_table_from_elsewhere_must_be_told_what_made_it(tmp_path):
    path = tmp_path / "v.parquet"
    pl.DataFrame({"id": [7, 8], "vector": [[1.0, 0.0], [0.6, 0.8]]}).write_parquet(path)
    with pytest.raises(ValueError, match="does not say what made its vectors"):
        VectorStore.from_parquet(path)
    store = VectorStore.from_parquet(path, kind="k", encoder_fingerprint="e")
    assert (store.ids, store.dim, store.manifest.unit_length) == (("7", "8"), 2, True)
    pl.DataFrame({"id": [7, 8], "vector": [[1.0], [0.6, 0.8]]}).write_parquet(path)
    with pytest.raises(ValueError, match=r"different lengths: \[1, 2\]"):
        VectorStore.from_parquet(path, kind="k", encoder_fingerprint="e")
    pl.DataFrame({"id": [7, 8]}).write_parquet(path)
    with pytest.raises(ValueError, match="needs the columns id and vector"):
        VectorStore.from_parquet(path)


def test_reading_vectors_does_not_load_torch():
    code = "import sys, embeddings.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
