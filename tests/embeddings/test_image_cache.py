import errno
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings import image_cache
from embeddings.image_cache import CHUNK_ROWS, chunks_of, open_cached_rows

ROWS = 5 * CHUNK_ROWS - 3
SHAPE = (ROWS, 2, 2, 3)
ROOT = Path(__file__).parents[2]


def expected(version=0):
    rng = np.random.default_rng(version)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8)


class Maker:
    """Makes the rows of ``expected`` and remembers which chunks it was asked for."""

    def __init__(self, version=0, new_rows=()):
        self.pixel_PSS3 = expected()
        for row in new_rows:
            self.pixel_PSS3[row] = expected(version)[row]
        self.made = []

    def source(self, chunk):
        return self.pixel_PSS3[chunk].tobytes().hex()[:64]

    def make(self, chunk):
        self.made.append(chunk.start // CHUNK_ROWS)
        return self.pixel_PSS3[chunk]

    def open(self, path, workers=2, progress=None):
        return open_cached_rows(
            path,
            SHAPE,
            source=self.source,
            make=self.make,
            workers=workers,
            progress=progress,
        )


def run_script(body, path, check=True):
    """Run some lines in another process that has ``Maker`` at hand and ``path`` as a name."""
    start = f"""
        import os, resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_image_cache import Maker
        path = Path({str(path)!r})
    """
    code = textwrap.dedent(start) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=check, capture_output=True, text=True
    )


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_chunks_cover_every_row_once():
    rows = [row for chunk in chunks_of(ROWS) for row in range(chunk.start, chunk.stop)]
    assert rows == list(range(ROWS))
    assert chunks_of(0) == []


def test_a_finished_cache_is_an_ordinary_file_that_is_not_made_again(tmp_path):
    path, maker = tmp_path / "new" / "images.npy", Maker()
    first = maker.open(path)
    assert sorted(maker.made) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(first, maker.pixel_PSS3)
    np.testing.assert_array_equal(np.load(path), maker.pixel_PSS3)
    again = maker.open(path)
    assert len(maker.made) == 5
    assert not again.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0
    assert sorted(p.name for p in path.parent.iterdir()) == [
        ".images.npy.lock",
        "images.npy",
        "images.npy.chunks",
    ]


def test_only_what_changed_is_made_again_and_open_maps_keep_what_they_showed(tmp_path):
    path = tmp_path / "images.npy"
    before = Maker().open(path)
    changed = Maker(version=1, new_rows=[2 * CHUNK_ROWS + i for i in range(9)])
    np.testing.assert_array_equal(changed.open(path), changed.pixel_PSS3)
    assert changed.made == [2]
    np.testing.assert_array_equal(before, expected())


@settings(max_examples=60, deadline=None)
@given(file=st.sampled_from(["images.npy", "images.npy.chunks"]), share=st.floats(0, 1))
def test_a_flipped_bit_anywhere_never_reaches_the_reader(tmp_path_factory, file, share):
    path = tmp_path_factory.mktemp("flip") / "images.npy"
    Maker().open(path)
    damaged = path.with_name(file)
    flip(damaged, int(share * (damaged.stat().st_size - 1)))
    maker = Maker()
    np.testing.assert_array_equal(maker.open(path), expected())
    np.testing.assert_array_equal(np.load(path), expected())


def test_a_flipped_pixel_costs_its_chunk_alone(tmp_path):
    path, maker = tmp_path / "images.npy", Maker()
    Maker().open(path)
    flip(path, path.stat().st_size - 1)
    maker.open(path)
    assert maker.made == [4]


@pytest.mark.parametrize("cut", [0, 10, 1_000])
def test_a_file_cut_short_is_made_anew(tmp_path, cut):
    path = tmp_path / "images.npy"
    Maker().open(path)
    os.truncate(path, cut)
    np.testing.assert_array_equal(Maker().open(path), expected())


def test_another_shape_under_the_same_name_is_made_anew(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((4, 4)))
    np.testing.assert_array_equal(Maker().open(path), expected())


def kill_after_three_chunks(path):
    done = run_script(
        """
        def progress(what, ready, total, figures):
            if ready == 3 * 128:
                os.kill(os.getpid(), signal.SIGKILL)
        Maker().open(path, workers=1, progress=progress)
        """,
        path,
        check=False,
    )
    assert done.returncode == -9, done.stderr


def test_a_killed_build_goes_on_where_it_stopped(tmp_path):
    path, maker, ready = tmp_path / "images.npy", Maker(), []
    kill_after_three_chunks(path)
    assert not path.exists()
    maker.open(path, workers=1, progress=lambda what, done, total, figures: ready.append(done))
    assert maker.made == [3, 4]
    assert ready == [4 * CHUNK_ROWS, ROWS]
    np.testing.assert_array_equal(np.load(path), expected())


def test_a_killed_build_is_not_trusted_where_it_was_damaged_or_its_source_changed(tmp_path):
    path = tmp_path / "images.npy"
    kill_after_three_chunks(path)
    header = path.with_name(".images.npy.part").stat().st_size - expected().nbytes
    flip(path.with_name(".images.npy.part"), header + CHUNK_ROWS * 12 + 5)
    with path.with_name(".images.npy.part.chunks").open("a") as lines:
        lines.write('{"chunk": 3, "sour')
    changed = Maker(version=1, new_rows=[0])
    np.testing.assert_array_equal(changed.open(path, workers=1), changed.pixel_PSS3)
    assert changed.made == [0, 1, 3, 4]
    changed.open(path)
    assert len(changed.made) == 4


def test_two_processes_build_one_cache_once(tmp_path):
    path = tmp_path / "images.npy"
    body = """
        import time
        maker = Maker()
        def progress(*_):
            time.sleep(0.05)
        found = maker.open(path, progress=progress)
        assert (found == maker.pixel_PSS3).all()
        Path(f"{path}.{os.getpid()}.made").write_text(str(len(maker.made)))
    """
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: run_script(body, path), range(2)))
    assert sorted(p.read_text() for p in tmp_path.glob("*.made")) == ["0", "5"]
    np.testing.assert_array_equal(np.load(path), expected())


def test_a_disk_that_is_full_at_once_is_told_with_figures(tmp_path):
    path = tmp_path / "images.npy"
    done = run_script(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            Maker().open(path)
        except OSError as error:
            print(error.errno, error)
        """,
        path,
    )
    size = 128 + expected().nbytes
    assert done.stdout.startswith(str(errno.EFBIG))
    assert f"the image cache in {tmp_path} needs {size:,} bytes" in done.stdout
    assert "are free" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [".images.npy.lock"]


def test_a_disk_that_fills_up_later_keeps_what_was_finished(tmp_path, monkeypatch):
    path = tmp_path / "images.npy"
    real_write, left = os.pwrite, [3 * CHUNK_ROWS * 12 + 200]

    def write(file, content, at):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(file, content[: left[0]], at)
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(image_cache.os, "pwrite", write)
        with pytest.raises(OSError, match=r"needs [\d,]+ bytes.*[\d,]+ are free") as error:
            Maker().open(path, workers=1)
    assert error.value.errno == errno.ENOSPC
    assert not path.exists()
    maker = Maker()
    np.testing.assert_array_equal(maker.open(path, workers=1), expected())
    assert maker.made == [3, 4]


def test_a_disk_that_takes_little_at_a_time_gets_everything(tmp_path, monkeypatch):
    real_write = os.pwrite
    monkeypatch.setattr(
        image_cache.os, "pwrite", lambda file, content, at: real_write(file, content[:1_000], at)
    )
    np.testing.assert_array_equal(Maker().open(tmp_path / "images.npy"), expected())


def test_other_trouble_with_the_disk_is_passed_on(tmp_path, monkeypatch):
    def broken(file, content, at):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(image_cache.os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output error"):
        Maker().open(tmp_path / "images.npy")


@pytest.mark.parametrize("workers", [1, 4])
def test_a_failure_keeps_the_chunks_before_it_and_stops_the_rest(tmp_path, workers):
    path, maker = tmp_path / "images.npy", Maker()

    def make(chunk):
        if chunk.start >= 2 * CHUNK_ROWS:
            raise ValueError(f"chunk at {chunk.start}")
        return maker.make(chunk)

    with pytest.raises(ValueError, match=f"chunk at {2 * CHUNK_ROWS}"):
        open_cached_rows(path, SHAPE, source=maker.source, make=make, workers=workers)
    assert not path.exists()
    maker.made.clear()
    maker.open(path, workers=1)
    assert maker.made == [2, 3, 4]


def test_a_finished_cache_can_be_read_where_nothing_may_be_written(tmp_path, monkeypatch):
    path = tmp_path / "images.npy"
    Maker().open(path)
    (tmp_path / ".images.npy.lock").unlink()
    monkeypatch.setattr(image_cache.os, "access", lambda path, mode: False)
    np.testing.assert_array_equal(Maker().open(path), expected())
    assert not (tmp_path / ".images.npy.lock").exists()


def test_the_lines_beside_the_array_say_what_is_in_it(tmp_path):
    path, maker = tmp_path / "images.npy", Maker()
    maker.open(path)
    text = (tmp_path / "images.npy.chunks").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line]
    assert [line["chunk"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["source"] for line in lines] == [maker.source(c) for c in chunks_of(ROWS)]
