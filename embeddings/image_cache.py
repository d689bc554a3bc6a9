"""An array of bytes in a file, made chunk by chunk, that outlives a kill at any moment.

Beside the array, an ordinary .npy file, lies NAME.chunks: one line for each chunk of rows with a
digest of what the chunk was made from and a checksum of its bytes. A chunk counts only if both
are right when the file is opened; all others are made again. While it is built, array and lines
stand under other names and are renamed at the end, so a reader finds the old array or the new
one, and a map that is open already keeps what it showed.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

CHUNK_ROWS = 128
"""What a kill costs at most is a few of these."""

SYNC_SECONDS = 1.0
"""How much work a power cut may cost; a killed process loses less."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with what is done, rows ready, rows in all, and figures by name."""

Made = TypeVar("Made")


def chunks_of(rows: int) -> list[slice]:
    """Consecutive slices that cover ``rows`` rows."""
    return [slice(at, min(at + CHUNK_ROWS, rows)) for at in range(0, rows, CHUNK_ROWS)]


def in_parallel(
    make: Callable[[slice], Made],
    chunks: Sequence[slice],
    *,
    workers: int,
    progress: Progress | None = None,
    ready: int = 0,
) -> Generator[tuple[slice, Made]]:
    """Call ``make`` on every chunk in several threads and yield the results in order.

    The first chunk in order that fails is the one whose error is raised, so that the same error
    comes out with any number of workers. Close the generator if it may be left early: that waits
    for the threads.

    Args:
        make: Should spend its time outside the interpreter lock, as Pillow's decoders do.
        chunks: What to work on.
        workers: Threads.
        progress: Called after every chunk with images per second and seconds left.
        ready: Rows that were ready before.
    """
    start = time.perf_counter()
    total = ready + sum(chunk.stop - chunk.start for chunk in chunks)
    done = ready
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        futures = [pool.submit(make, chunk) for chunk in chunks]
        try:
            for chunk, future in zip(chunks, futures, strict=True):
                yield chunk, future.result()
                done += chunk.stop - chunk.start
                if progress is not None:
                    rate = (done - ready) / max(time.perf_counter() - start, 1e-9)
                    figures = {"images_per_s": rate, "seconds_left": (total - done) / rate}
                    progress("decode images", done, total, figures)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def open_cached_rows(
    path: str | Path,
    shape: tuple[int, ...],
    *,
    source: Callable[[slice], str],
    make: Callable[[slice], NDArray[np.uint8]],
    workers: int,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Map a cached array into memory, making first what is missing, changed or damaged.

    One process builds at a time; another that wants the same file waits and then finds it ready.

    Args:
        path: The .npy file; its folder is made if it is missing.
        shape: Of the whole array, rows first, at least one row.
        source: Digest of all that a chunk of rows is made from.
        make: The bytes of a chunk of rows.
        workers: Threads.
        progress: As ``in_parallel``; called only if something has to be made.

    Returns:
        A read-only memory map.

    Raises:
        OSError: If the disk is full: what is needed, where, and what is free. What was finished
            stays beside the file under another name and is taken up by the next call.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        chunks = chunks_of(shape[0])
        wanted = [digest for _, digest in in_parallel(source, chunks, workers=workers)]
        files = _Files(array=path, lines=path.with_name(f"{path.name}.chunks"), shape=shape)
        sound = files.sound(wanted, workers)
        if len(sound) < len(chunks):
            _rebuild_(files, wanted, sound, make, workers, progress)
        return np.load(path, mmap_mode="r")


def _alone(path: Path) -> AbstractContextManager[object]:
    # A finished cache on a disk that cannot be written to needs no lock and can have none.
    if not os.access(path.parent, os.W_OK):
        return nullcontext()
    return FileLock(path.with_name(f".{path.name}.lock"))


@dataclass(frozen=True, kw_only=True)
class _Files:
    """An array and the lines about its chunks."""

    array: Path
    lines: Path
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """What a .npy file of this shape begins with."""
        buffer = io.BytesIO()
        layout = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(buffer, layout)
        return buffer.getvalue()

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def size(self) -> int:
        """Bytes of the whole array file."""
        return len(self.header) + self.shape[0] * self.row_bytes

    def read(self, file: int, chunk: slice) -> bytes:
        start = len(self.header) + chunk.start * self.row_bytes
        return os.pread(file, (chunk.stop - chunk.start) * self.row_bytes, start)

    def write_(self, file: int, chunk: slice, content: bytes) -> None:
        left = memoryview(content)
        at = len(self.header) + chunk.start * self.row_bytes
        while left:
            # A disk that fills up within a write takes a part of it and complains at the next.
            written = os.pwrite(file, left, at)
            left, at = left[written:], at + written

    def is_laid_out(self) -> bool:
        """Whether the array file has the right length and begins with the right header."""
        if not self.array.is_file() or self.array.stat().st_size != self.size:
            return False
        with self.array.open("rb") as file:
            return file.read(len(self.header)) == self.header

    def sound(self, wanted: list[str], workers: int) -> dict[int, int]:
        """Checksums, by number, of the chunks made from what is wanted and not damaged since."""
        if not (self.is_laid_out() and self.lines.is_file()):
            return {}
        claimed = {
            number: checksum
            for number, (digest, checksum) in self._read_lines().items()
            if 0 <= number < len(wanted) and digest == wanted[number]
        }
        chunks = chunks_of(self.shape[0])
        with _opened(self.array, os.O_RDONLY) as file:
            checked = in_parallel(
                lambda chunk: zlib.crc32(self.read(file, chunk)),
                [chunks[number] for number in claimed],
                workers=workers,
            )
            with closing(checked):
                pairs = zip(claimed.items(), checked, strict=True)
                return {number: claim for (number, claim), (_, found) in pairs if found == claim}

    def _read_lines(self) -> dict[int, tuple[str, int]]:
        lines = {}
        for text in self.lines.read_bytes().splitlines():
            try:
                line = json.loads(text)
                number, entry = line["chunk"], (line["source"], line["crc32"])
            except (ValueError, KeyError, TypeError):
                # The last line of a killed build may be cut off; a damaged one counts as absent.
                continue
            if isinstance(number, int):
                lines[number] = entry
        return lines


def _rebuild_(
    finished: _Files,
    wanted: list[str],
    sound: dict[int, int],
    make: Callable[[slice], NDArray[np.uint8]],
    workers: int,
    progress: Progress | None,
) -> None:
    """Write a whole array beside the finished one, with what either already has, and rename it."""
    name = finished.array.name
    part = _Files(
        array=finished.array.with_name(f".{name}.part"),
        lines=finished.array.with_name(f".{name}.part.chunks"),
        shape=finished.shape,
    )
    kept = part.sound(wanted, workers)
    if not kept:
        _discard_(part)
    try:
        with (
            _opened(part.array, os.O_RDWR | os.O_CREAT) as file,
            _opened(part.lines, os.O_RDWR | os.O_CREAT | os.O_APPEND) as lines,
        ):
            # Without this a full disk would show only later, as a SIGBUS in the memory map.
            os.posix_fallocate(file, 0, part.size)
            os.pwrite(file, part.header, 0)
            # Ends a line that a killed build may have left without its end.
            os.write(lines, b"\n")
            _copy_sound_(finished, part, file, lines, wanted, sound, kept)
            _make_missing_(part, file, lines, wanted, kept, make, workers, progress)
            os.fsync(file)
            os.fsync(lines)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(error.errno, _needs(part)) from error
    finally:
        if not kept:
            _discard_(part)
    part.lines.replace(finished.lines)
    part.array.replace(finished.array)
    with _opened(finished.array.parent, os.O_RDONLY) as folder:
        os.fsync(folder)


def _copy_sound_(
    finished: _Files,
    part: _Files,
    file: int,
    lines: int,
    wanted: list[str],
    sound: dict[int, int],
    kept: dict[int, int],
) -> None:
    """Take over what the finished array has and the part lacks; ``kept`` grows by it."""
    chunks = chunks_of(part.shape[0])
    missing = sorted(sound.keys() - kept.keys())
    if not missing:
        return
    with _opened(finished.array, os.O_RDONLY) as old:
        for number in missing:
            part.write_(file, chunks[number], finished.read(old, chunks[number]))
            _note_(lines, number, wanted[number], sound[number])
            kept[number] = sound[number]


def _make_missing_(
    part: _Files,
    file: int,
    lines: int,
    wanted: list[str],
    kept: dict[int, int],
    make: Callable[[slice], NDArray[np.uint8]],
    workers: int,
    progress: Progress | None,
) -> None:
    """Make all chunks that are not ``kept``, which grows by them."""
    chunks = chunks_of(part.shape[0])
    numbers = [number for number in range(len(chunks)) if number not in kept]
    ready = sum(chunks[number].stop - chunks[number].start for number in kept)

    def fill(chunk: slice) -> int:
        content = make(chunk).tobytes()
        part.write_(file, chunk, content)
        return zlib.crc32(content)

    todo = [chunks[number] for number in numbers]
    synced = time.monotonic()
    made = in_parallel(fill, todo, workers=workers, progress=progress, ready=ready)
    with closing(made):
        for number, (_, checksum) in zip(numbers, made, strict=True):
            _note_(lines, number, wanted[number], checksum)
            kept[number] = checksum
            if time.monotonic() - synced > SYNC_SECONDS:
                os.fdatasync(file)
                os.fdatasync(lines)
                synced = time.monotonic()


def _note_(lines: int, number: int, source: str, checksum: int) -> None:
    line = json.dumps({"chunk": number, "source": source, "crc32": checksum})
    os.write(lines, f"{line}\n".encode())


def _discard_(files: _Files) -> None:
    files.array.unlink(missing_ok=True)
    files.lines.unlink(missing_ok=True)


def _needs(part: _Files) -> str:
    folder = part.array.parent
    held = part.array.stat().st_blocks * 512 if part.array.is_file() else 0
    free = shutil.disk_usage(folder).free
    return (
        f"the disk is full: the image cache in {folder} needs {part.size:,} bytes, of which "
        f"{min(held, part.size):,} are allotted already, and {free:,} are free (a quota or a "
        "limit on the size of files may allow less). Free some and repeat the command, or name a "
        "cache on another disk"
    )


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o644)
    try:
        yield file
    finally:
        os.close(file)
