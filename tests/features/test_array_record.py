"""Records of arrays as folders: mapped when they are read, and not copied if they lie in files."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from features.array_record import map_record, write_record
from features.examples import Examples


@dataclass(frozen=True, kw_only=True)
class Pair:
    first: NDArray
    second: NDArray
    names: tuple[str, ...] = ("a", "b")


def test_a_record_comes_back_mapped_and_may_be_written_without_changing_the_file(
    small_log, tmp_path
):
    write_record(replace(small_log.train, purchased_N=None), tmp_path / "train")
    mapped = map_record(Examples, tmp_path / "train")
    assert mapped.sparse_names == small_log.train.sparse_names
    assert np.array_equal(mapped.sparse_NF, small_log.train.sparse_NF)
    assert mapped.purchased_N is None
    assert isinstance(mapped.sparse_NF, np.memmap)
    mapped.sparse_NF[0, 0] += 1
    again = map_record(Examples, tmp_path / "train")
    assert np.array_equal(again.sparse_NF, small_log.train.sparse_NF)


@pytest.fixture
def table(tmp_path):
    """A table in a file, mapped."""
    np.save(tmp_path / "table.npy", np.arange(60, dtype=np.int16).reshape(12, 5))
    return np.load(tmp_path / "table.npy", mmap_mode="c")


VIEWS = {
    "whole": np.s_[:],
    "rows": np.s_[3:9],
    "columns": np.s_[:, 1:3],
    "every second, backwards": np.s_[10:2:-2, ::-1],
    "one column": np.s_[:, 2],
    "nothing": np.s_[:0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_what_is_mapped_from_a_file_is_read_where_it_lies(table, tmp_path, view):
    seen = table[view]
    folder = tmp_path / "record"
    write_record(Pair(first=np.asarray(seen), second=np.arange(3)), folder)
    assert sorted(path.name for path in folder.glob("*.npy")) == ["second.npy"]
    read = map_record(Pair, folder)
    assert read.names == ("a", "b")
    assert read.first.dtype == seen.dtype and np.array_equal(read.first, seen)
    # And once more from what was mapped, as a process may that is a parent of others.
    write_record(read, tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.npy"))
    again = map_record(Pair, tmp_path / "again")
    assert np.array_equal(again.first, seen) and np.array_equal(again.second, [0, 1, 2])
    if seen.size:
        read.first[...] = -1
    assert np.array_equal(map_record(Pair, folder).first, seen), "only this process's copy changed"


def test_what_was_computed_from_mapped_rows_is_written(table, tmp_path):
    write_record(Pair(first=table + 1, second=table[[2, 1]]), tmp_path / "record")
    (tmp_path / "table.npy").unlink()
    read = map_record(Pair, tmp_path / "record")
    assert read.first[0, 0] == 1 and read.second[0, 0] == 10


def test_a_file_that_is_gone_or_changed_is_named(table, tmp_path):
    write_record(Pair(first=table, second=table), tmp_path / "record")
    path = tmp_path / "table.npy"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"table\.npy should have 248 bytes, .* finds 252 bytes"):
        map_record(Pair, tmp_path / "record")
    path.unlink()
    with pytest.raises(ValueError, match=r"finds no file; rows that several processes train on"):
        map_record(Pair, tmp_path / "record")
