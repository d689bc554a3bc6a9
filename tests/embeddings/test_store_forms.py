import json

import numpy as np
import pytest

from embeddings.compact_store import CompactStore
from embeddings.exact_search import search_exactly
from embeddings.store import VectorStore
from embeddings.store_codec import Codec, hamming, pack, ranges_of
from embeddings.store_forms import FormConfig, compact_
from features.embedding_join import join_vectors


def unit(vector_VD):
    return vector_VD / np.linalg.norm(vector_VD, axis=1, keepdims=True)


def store_of(vector_VD, kind="product/text", encoder="enc"):
    ids = [f"p{i:04d}" for i in range(len(vector_VD))]
    return VectorStore.from_arrays(ids, vector_VD, kind=kind, encoder_fingerprint=encoder)


@pytest.fixture(scope="module")
def store():
    """600 unit vectors around 40 centres, in 64 dimensions of falling spread; row 5 is zeros."""
    rng = np.random.default_rng(0)
    spread_D = np.exp(-np.arange(64) / 10)
    centre_CD = rng.normal(size=(40, 64))
    vector_VD = (centre_CD[rng.integers(0, 40, 600)] + 0.4 * rng.normal(size=(600, 64))) * spread_D
    vector_VD = unit(vector_VD).astype(np.float32)
    vector_VD[5] = 0
    return store_of(vector_VD)


@pytest.fixture(scope="module")
def queries(store):
    noise = np.random.default_rng(1).normal(0, 0.05, (80, 64))
    vector_QD = unit(np.asarray(store.vectors_VD[100:180]) + noise).astype(np.float32)
    return store_of(vector_QD, "query/text")


@pytest.mark.parametrize(
    ("config", "bytes_per_vector"),
    [
        (FormConfig(form="float16"), 128),
        (FormConfig(form="int8"), None),
        (FormConfig(form="binary", minimum_retention=0.3), 8),
        (FormConfig(form="float32", dims=32), 128),
        (FormConfig(form="int8", dims=48), None),
    ],
)
def test_a_form_that_passes_is_written_with_its_figures_and_searches_as_it_was_judged(
    store, queries, tmp_path, config, bytes_per_vector
):
    made = compact_(store, tmp_path / "c", config, queries=queries)
    gate = made.manifest.gate
    assert config.minimum <= gate["retention"] <= 1
    assert (gate["k"], gate["queries"], gate["queries_from"]) == (10, 80, "given queries")
    assert gate["minimum"] == config.minimum
    assert bytes_per_vector in (None, made.manifest.bytes_per_vector)
    query_QD = np.asarray(queries.vectors_VD)
    exact = search_exactly(store, query_QD, 10)
    found = made.search(query_QD, 10)
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(exact.row_QK, found.row_QK, strict=True)]
    # No two of these vectors are equal, so that counting by sets is the same.
    assert np.mean(kept) == pytest.approx(gate["retention"])
    again = CompactStore.open(tmp_path / "c", expect_fingerprint=made.fingerprint)
    assert again.manifest == made.manifest
    np.testing.assert_array_equal(again.search(query_QD, 10).row_QK, found.row_QK)
    np.testing.assert_array_equal(made.vectors_VD[5], np.zeros(made.dim))
    np.testing.assert_array_equal(again.row_of(["p0007", "?"]), [7, -1])


def test_a_form_that_keeps_too_little_is_refused_with_what_it_keeps(store, queries, tmp_path):
    config = FormConfig(form="float32", dims=2)
    with pytest.raises(ValueError, match=r"with 2 dimensions keeps 0\.\d{4} .*gate of 0.9") as it:
        compact_(store, tmp_path / "c", config, queries=queries)
    assert "over 80 queries" in str(it.value)
    assert list(tmp_path.iterdir()) == []
    made = compact_(
        store, tmp_path / "c", config.model_copy(update={"minimum_retention": 0.01}),
        queries=queries,
    )  # fmt: skip
    assert f"keeps {made.manifest.gate['retention']:.4f}" in str(it.value)


def test_int8_takes_the_ranging_that_keeps_most(store, queries, tmp_path):
    gate = compact_(store, tmp_path / "c", queries=queries).manifest.gate
    assert set(gate["tried"]) == {"per_vector", "per_dimension", "affine"}
    assert gate["retention"] == max(gate["tried"].values())
    # One dimension far from zero: by vector, all others share a few steps.
    wide_VD = np.array(store.vectors_VD)
    wide_VD[:, 0] = 10 + wide_VD[:, 0]
    config = FormConfig(minimum_retention=0.01)
    wide = compact_(store_of(wide_VD), tmp_path / "w", config).manifest
    assert wide.ranging == "affine"
    assert wide.gate["tried"]["affine"] > wide.gate["tried"]["per_vector"]


def test_rows_of_the_store_judge_without_finding_themselves(tmp_path):
    # Every vector is closest to itself; binary of 64 random dimensions keeps little else.
    vector_VD = unit(np.random.default_rng(0).normal(size=(400, 64))).astype(np.float32)
    config = FormConfig(form="binary", k=1, rescore=1, minimum_retention=0.01)
    gate = compact_(store_of(vector_VD), tmp_path / "c", config).manifest.gate
    assert gate["queries_from"] == "the store itself"
    assert gate["retention"] < 0.6


def test_rescoring_finds_more_than_hamming_alone(store, queries, tmp_path):
    kept = {}
    for rescore in (1, 8):
        config = FormConfig(form="binary", rescore=rescore, minimum_retention=0.01)
        made = compact_(store, tmp_path / str(rescore), config, queries=queries)
        kept[rescore] = made.manifest.gate["retention"]
    assert kept[8] > kept[1]


def test_codes_by_hand():
    vector_ND = np.array([[1.27, -0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    by_vector = Codec(form="int8", source_dim=3, dim=3, ranging="per_vector")
    code_NB, scale_N = by_vector.encode(vector_ND)
    assert code_NB.tolist() == [[127, -50, 0], [0, 0, 0]]
    np.testing.assert_allclose(scale_N, [0.01, 1])
    low_D, high_D = np.array([0.0, -1.0], np.float32), np.array([2.55, 1.0], np.float32)
    range_2D = ranges_of(low_D, high_D, "affine")
    affine = Codec(form="int8", source_dim=2, dim=2, ranging="affine", range_2D=range_2D)
    code_NB, scale_N = affine.encode(np.array([[0.0, 1.0], [2.55, -1.0], [0.1, 0]], np.float32))
    assert code_NB[:2].tolist() == [[-128, 127], [127, -128]]
    np.testing.assert_allclose(affine.decode(code_NB, scale_N)[0], [0.0, 1.0], atol=1e-6)
    assert code_NB[2, 0] == -118
    short = Codec(form="float32", source_dim=3, dim=2)
    np.testing.assert_allclose(short.shorten(np.array([[3.0, 4, 9], [0, 0, 1]])),
                               [[0.6, 0.8], [0, 0]])  # fmt: skip


@pytest.mark.parametrize("dim", [1, 7, 64, 65, 200])
def test_hamming_counts_the_bits_that_differ(dim):
    rng = np.random.default_rng(dim)
    one_QD, other_ND = rng.random((5, dim)) < 0.5, rng.random((9, dim)) < 0.5
    expected_QN = (one_QD[:, None] != other_ND[None]).sum(axis=2)
    np.testing.assert_array_equal(hamming(pack(one_QD), pack(other_ND)), expected_QN)


@pytest.mark.parametrize("ranging", ["per_vector", "per_dimension", "affine"])
def test_no_value_moves_by_more_than_half_a_step(store, ranging):
    vector_VD = np.asarray(store.vectors_VD)
    range_2D = ranges_of(vector_VD.min(axis=0), vector_VD.max(axis=0), ranging)
    codec = Codec(form="int8", source_dim=64, dim=64, ranging=ranging, range_2D=range_2D)
    code_NB, scale_N = codec.encode(vector_VD)
    step = scale_N[:, None] if range_2D is None else range_2D[1]
    assert np.all(np.abs(codec.decode(code_NB, scale_N) - vector_VD) <= step * 0.5001)


def test_a_compact_store_is_a_vector_table(store, tmp_path):
    made = compact_(store, tmp_path / "c")
    joined = join_vectors(made, made, ["p0003", "nobody"], ["p0001"])
    assert joined.product_present_P.tolist() == [True, False]
    np.testing.assert_array_equal(joined.product_PD[0], made.block(3, 4)[0])


@pytest.mark.parametrize("name", ["codes.npy", "ranges.npy", "scales.npy", "ids.json"])
def test_one_flipped_bit_is_refused(store, tmp_path, name):
    config = FormConfig(minimum_retention=0.5)
    folder = tmp_path / "c"
    made = compact_(store, folder, config)
    path = folder / name
    content = bytearray(path.read_bytes())
    if name in ("ranges.npy", "scales.npy") and len(content) == 128:
        pytest.skip(f"{name} is empty under {made.manifest.ranging}")
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        CompactStore.open(folder)


def test_what_has_no_such_form_is_refused(store, queries, tmp_path):
    long = store_of(np.asarray(store.vectors_VD) * 3)
    out = tmp_path / "c"
    with pytest.raises(ValueError, match="dims=65 must be at most 64"):
        compact_(store, out, FormConfig(dims=65))
    with pytest.raises(ValueError, match="is the store as it is"):
        compact_(store, out, FormConfig(form="float32"))
    for config in (FormConfig(form="binary"), FormConfig(dims=8)):
        with pytest.raises(ValueError, match="not all of length 1"):
            compact_(long, out, config)
    with pytest.raises(ValueError, match="beyond float16"):
        compact_(store_of(np.asarray(store.vectors_VD) * 1e6), out, FormConfig(form="float16"))
    other = store_of(queries.vectors_VD, "query/text", encoder="another")
    with pytest.raises(ValueError, match="their cosines mean nothing"):
        compact_(store, out, queries=other)
    with pytest.raises(ValueError, match="must have the 64 dimensions"):
        compact_(store, out, queries=queries).search(np.ones((1, 8)), 3)


def test_stores_of_another_encoder_and_other_folders_are_refused(store, tmp_path):
    made = compact_(store, tmp_path / "c")
    for known in (made.fingerprint, store.fingerprint, "enc"):
        assert CompactStore.open(tmp_path / "c", known).dim == 64
    with pytest.raises(ValueError, match="was expected"):
        CompactStore.open(tmp_path / "c", "another encoder")
    with pytest.raises(ValueError, match="no sound compact store"):
        CompactStore.open(tmp_path)
    manifest = tmp_path / "c" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "other"}))
    with pytest.raises(ValueError, match="has format 'other'"):
        CompactStore.open(tmp_path / "c")
    (tmp_path / "letters").mkdir()
    with pytest.raises(ValueError, match="is not a compact store"):
        compact_(store, tmp_path / "letters")
