"""Rows of id tables in mapped files: they learn alike and take no memory of their own."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from ranking import row_memory
from ranking.fused_tables import FusedTables
from ranking.row_memory import new_rows, rows_in_file, without_rows


@pytest.fixture
def all_in_file(monkeypatch):
    monkeypatch.setattr(row_memory, "MAPPED_BYTES", 0)


def mapped(tensor):
    return tensor.untyped_storage().filename is not None


def learned():
    torch.manual_seed(0)
    tables = FusedTables(["user", "brand"], (50, 7), 8, learning_rate=0.1)
    for _ in range(3):
        sparse_BF = torch.stack([torch.randint(size, (16,)) for size in (50, 7)], dim=1).int()
        tables(sparse_BF).backward(torch.randn(16, 16))
    return tables


def test_rows_learn_alike_in_memory_and_in_a_file(either_kernels, all_in_file, tmp_path):
    here = learned()
    with rows_in_file(tmp_path):
        there = learned()
    assert not mapped(here.weights()[0]) and not mapped(here.accumulators()[1])
    assert mapped(there.weights()[0]) and mapped(there.accumulators()[1])
    own, other = ([*each.weights(), *each.accumulators()] for each in (here, there))
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert list(tmp_path.iterdir()) == [], "files go with the tables, even after a kill"


def test_rows_given_back_come_again_where_they_should_lie_then(all_in_file, tmp_path):
    tables = learned()
    tables.release_()
    assert tables.weights()[0].is_meta and tables.accumulators()[0].is_meta
    with rows_in_file(tmp_path):
        tables.hold_again_()
    assert mapped(tables.weights()[1]) and tables.weights()[1].shape == (7, 8)
    with rows_in_file(tmp_path), without_rows():
        assert new_rows(3, 4).is_meta


def test_what_is_small_stays_in_memory(tmp_path):
    with rows_in_file(tmp_path):
        assert not mapped(new_rows(row_memory.MAPPED_BYTES // 4 - 1))
        assert mapped(new_rows(row_memory.MAPPED_BYTES // 4, 1))
    assert not mapped(new_rows(row_memory.MAPPED_BYTES // 4, 1))


def test_a_disk_without_room_is_said_before_a_row_is_written(all_in_file, tmp_path, monkeypatch):
    def full(handle, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with rows_in_file(tmp_path), pytest.raises(OSError, match="No space left"):
        new_rows(10, 4)
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import re, sys, torch
from pathlib import Path
from ranking.fused_tables import FusedTables
from ranking.row_memory import rows_in_file

def private():
    told = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"Anonymous: +(\\d+)", told)[1])

FusedTables(["small"], (10,), 4, learning_rate=0.1)
before = private()
with rows_in_file(Path(sys.argv[1])):
    tables = FusedTables(["user"], (2_000_000,), 16, learning_rate=0.1)
print(private() - before, float(tables.weights()[0].std()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_table_in_a_file_takes_no_private_memory(tmp_path):
    asked = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    private, deviation = map(float, done.stdout.split())
    assert deviation == pytest.approx(0.01, rel=0.01)
    assert private < 40_000_000, "of 128 MB and their sums"
