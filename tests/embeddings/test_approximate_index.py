import json
import sys

import numpy as np
import pytest

from embeddings.approximate_index import ApproximateConfig, ApproximateIndex
from embeddings.exact_search import search_exactly
from embeddings.store import VectorStore


def store_of(vector_VD, encoder="enc"):
    vector_VD = vector_VD / np.linalg.norm(vector_VD, axis=1, keepdims=True)
    ids = [f"p{i:04d}" for i in range(len(vector_VD))]
    return VectorStore.from_arrays(ids, vector_VD, kind="k", encoder_fingerprint=encoder)


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("usearch")
    return store_of(np.random.default_rng(0).normal(size=(1500, 24)))


@pytest.fixture(scope="module")
def queries():
    return store_of(np.random.default_rng(1).normal(size=(60, 24)))


def test_the_recall_in_the_manifest_is_what_a_search_finds(store, queries, tmp_path):
    index = ApproximateIndex.build_(store, tmp_path / "i", queries=queries)
    recall = index.manifest.recall
    assert (recall["queries"], recall["queries_from"]) == (60, "given queries")
    again = ApproximateIndex.open(tmp_path / "i", store)
    query_QD = np.asarray(queries.vectors_VD)
    found, exact = again.search(query_QD, 10), search_exactly(store, query_QD, 10)
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(found.row_QK, exact.row_QK, strict=True)]
    assert np.mean(kept) == pytest.approx(recall["recall"])
    assert recall["recall"] >= 0.95
    same = found.row_QK == exact.row_QK
    np.testing.assert_array_equal(found.score_QK[same], exact.score_QK[same])


def test_a_graph_that_finds_too_little_is_refused_with_what_it_finds(store, queries, tmp_path):
    config = ApproximateConfig(connectivity=2, expansion_add=1, expansion_search=1)
    with pytest.raises(ValueError, match=r"the index finds 0\.\d{4} .*gate of 0.95"):
        ApproximateIndex.build_(store, tmp_path / "i", config, queries=queries)
    assert list(tmp_path.iterdir()) == []


def test_it_opens_beside_its_own_store_alone(store, tmp_path):
    ApproximateIndex.build_(store, tmp_path / "i")
    changed = np.array(store.vectors_VD)
    changed[[3, 4]] = changed[[4, 3]]
    with pytest.raises(ValueError, match="was built over store"):
        ApproximateIndex.open(tmp_path / "i", store_of(changed))
    with pytest.raises(ValueError, match="was built over store"):
        ApproximateIndex.open(tmp_path / "i", store_of(np.asarray(store.vectors_VD), "other"))
    path = tmp_path / "i" / "index.usearch"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        ApproximateIndex.open(tmp_path / "i", store)
    manifest = tmp_path / "i" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "other"}))
    with pytest.raises(ValueError, match="has format 'other'"):
        ApproximateIndex.open(tmp_path / "i", store)
    with pytest.raises(ValueError, match="no sound approximate index"):
        ApproximateIndex.open(tmp_path, store)


def test_the_same_store_gives_the_same_graph(store, tmp_path):
    made = [ApproximateIndex.build_(store, tmp_path / name).manifest for name in "ab"]
    assert made[0] == made[1]


def test_queries_of_another_encoder_or_size_are_refused(store, queries, tmp_path):
    other = store_of(np.asarray(queries.vectors_VD), "another")
    with pytest.raises(ValueError, match="their cosines mean nothing"):
        ApproximateIndex.build_(store, tmp_path / "i", queries=other)
    index = ApproximateIndex.build_(store, tmp_path / "i")
    for bad in (np.ones((1, 3)), np.ones(24)):
        with pytest.raises(ValueError, match="must be rows of 24 values"):
            index.search(bad, 3)
    with pytest.raises(ValueError, match="NaN"):
        index.search(np.full((1, 24), np.nan), 3)


def test_without_usearch_the_extra_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ValueError, match=r"pip install 'adtower\[index\]'"):
        ApproximateIndex.build_(store, tmp_path / "i")
