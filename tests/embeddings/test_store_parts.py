import numpy as np
import pytest

from embeddings.store import VectorStore, refuse_other_encoder
from embeddings.store_parts import refuse_repeats_across, write_parts_

MADE = {"kind": "product/text", "encoder_fingerprint": "enc", "data_fingerprint": "d"}


@pytest.fixture
def rows():
    vector_VD = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    vector_VD /= np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return [f"ü{i}" for i in range(7)], vector_VD


def parts_of(rows, *ends):
    ids, vector_VD = rows
    for start, stop in zip((0, *ends), (*ends, len(ids)), strict=True):
        yield ids[start:stop], vector_VD[start:stop]


@pytest.mark.parametrize("ends", [(), (3,), (0, 2, 2, 6, 7)])
def test_a_store_written_in_parts_is_to_the_byte_the_store_written_at_once(rows, ends, tmp_path):
    whole = VectorStore.write_(tmp_path / "whole", *rows, **MADE)
    manifest = write_parts_(tmp_path / "parts", parts_of(rows, *ends), count=7, dim=3, **MADE)
    assert manifest == whole.manifest
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    assert VectorStore.open(tmp_path / "parts").fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        (lambda x: np.where(x == x[4].max(), np.nan, x), 7, r"id 'ü4' \(row 4\) holds NaN"),
        (lambda x: x[:, :2], 7, "it must be"),
        (lambda x: x, 8, "7 rows, but 8 were announced"),
    ],
)
def test_bad_parts_leave_nothing_behind(rows, tmp_path, change, count, message):
    bad = (rows[0], change(rows[1]))
    with pytest.raises(ValueError, match=message):
        write_parts_(tmp_path / "s", parts_of(bad, 3), count=count, dim=3, **MADE)
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_comes_twice_is_found_across_batches():
    batches = [[f"p{i}" for i in range(start, start + 100)] for start in range(0, 1000, 100)]
    refuse_repeats_across(batches, batches)
    batches[7][3] = "p12"
    with pytest.raises(ValueError, match="id 'p12' appears twice, in rows 12 and 703"):
        refuse_repeats_across(batches, batches)


def test_vectors_of_two_encoders_or_preparations_are_not_compared(rows):
    def store(kind="query/text", encoder="enc", **preprocessing):
        return VectorStore.from_arrays(
            *rows, kind=kind, encoder_fingerprint=encoder, preprocessing=preprocessing
        ).manifest

    products = store("product/text", tokenizer="t", pooling="mean", max_tokens=64)
    refuse_other_encoder(products, store(tokenizer="t", pooling="mean", max_tokens=24))
    refuse_other_encoder(products, store())
    with pytest.raises(ValueError, match="vectors from other; their cosines mean nothing"):
        refuse_other_encoder(products, store(encoder="other"))
    with pytest.raises(ValueError, match="pooling='mean' and query/text vectors with"):
        refuse_other_encoder(products, store(tokenizer="t", pooling="first"))
    with pytest.raises(ValueError, match="max_tokens=64"):
        refuse_other_encoder(products, store("product/text", max_tokens=32))


def test_what_an_older_manifest_does_not_say_leaves_its_name_as_it_was(rows):
    plain = VectorStore.from_arrays(*rows, **MADE)
    assert plain.fingerprint == plain.manifest.fingerprint
    said = VectorStore.from_arrays(*rows, **MADE, preprocessing={"pooling": "mean"})
    assert said.fingerprint != plain.fingerprint
