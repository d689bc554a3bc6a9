"""The C of ``step_kernels.c``, compiled once on this machine, called with tensors.

A compiler that knows the processor makes one pass over memory of what torch does in several: rows
of id tables rounded as they are looked up, row-wise Adagrad straight from a bfloat16 gradient, and
a last layer whose input needs no float32 copy. It is built with the C compiler that ``CC`` names,
or ``cc``, into the user's cache folder, under all that decides what comes out. Where there is no
compiler, torch and fbgemm do the same; sums are then rounded in another order.

Environment:
    ADTOWER_KERNELS: "off" compiles and loads nothing.

Shape letters: B batch, F sparse features, E width of an id embedding, V rows of all tables end to
end, C dense columns, W width of a layer.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from embeddings.hardware import cache_folder
from embeddings.processor import read_processor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    # A product and a sum stay two roundings, whatever the processor could do in one.
    *("-ffp-contract=off", "-fno-math-errno"),
)
COMPILE_SECONDS = 120
"""A compiler that takes longer is given up."""

_LOG = logging.getLogger("adtower.step_kernels")


class StepKernels:
    """The functions of the library at ``path``, with tensors for pointers.

    Tensors lie on the processor and are contiguous.
    """

    def __init__(self, path: Path) -> None:
        # torch is imported here, so its OpenMP and its threads are those that the library gets.
        self._library = ctypes.CDLL(str(path))
        self._library.look_up.restype = ctypes.c_int64

    def look_up(
        self,
        sparse_BF: Tensor,
        first_F: Tensor,
        size_F: Tensor,
        weight_VE: Tensor,
        dense_BC: Tensor,
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Return rows and dense columns side by side in bfloat16, shape (B, F * E + C).

        Args:
            sparse_BF: int32.
            first_F, size_F: int64; where each feature's rows begin in ``weight_VE``, and how many.
            weight_VE, dense_BC: float32.

        Returns:
            Them, and the first (b, f) whose id lies beyond its table, which leaves them unfinished.
        """
        (batch, features), (_, width) = sparse_BF.shape, weight_VE.shape
        out_BW = torch.empty(batch, features * width + dense_BC.shape[1], dtype=torch.bfloat16)
        beyond = self._library.look_up(
            *_sizes(batch, features, width, dense_BC.shape[1]),
            _at(sparse_BF, torch.int32),
            _at(first_F, torch.int64),
            _at(size_F, torch.int64),
            _at(weight_VE, torch.float32),
            _at(dense_BC, torch.float32),
            _at(out_BW, torch.bfloat16),
        )
        return out_BW, None if beyond == batch * features else divmod(beyond, features)

    def learn_(
        self,
        sparse_BF: Tensor,
        first_F: Tensor,
        grad_BW: Tensor,
        weight_VE: Tensor,
        accumulator_V: Tensor,
        *,
        learning_rate: float,
        epsilon: float,
    ) -> None:
        """Update the rows named, each once, by row-wise Adagrad.

        Args:
            sparse_BF: int32 ids within their tables.
            first_F: int64; where each feature's rows begin.
            grad_BW: float32 or bfloat16; its first F * E columns are those of the rows.
            weight_VE, accumulator_V: float32; changed.

        Raises:
            MemoryError: Nothing was changed.
        """
        (batch, features), (_, width) = sparse_BF.shape, weight_VE.shape
        low = grad_BW.dtype == torch.bfloat16
        status = self._library.learn(
            *_sizes(batch, features, width, grad_BW.shape[1]),
            ctypes.c_int(low),
            _at(sparse_BF, torch.int32),
            _at(first_F, torch.int64),
            _at(grad_BW, torch.bfloat16 if low else torch.float32),
            _at(weight_VE, torch.float32),
            _at(accumulator_V, torch.float32),
            ctypes.c_float(learning_rate),
            ctypes.c_float(epsilon),
        )
        if status:
            raise MemoryError(f"no memory to sum the gradients of {batch} rows")

    def logits(self, seen_BW: Tensor, weight_W: Tensor) -> Tensor:
        """Return ``seen @ weight`` of bfloat16 and float32 in float32, shape (B,)."""
        out_B = torch.empty(len(seen_BW))
        self._library.logits(
            *_sizes(*seen_BW.shape),
            _at(seen_BW, torch.bfloat16),
            _at(weight_W, torch.float32),
            _at(out_B, torch.float32),
        )
        return out_B

    def logit_gradients(
        self, seen_BW: Tensor, weight_W: Tensor, upstream_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``logits``: bfloat16 (B, W) and float32 (W,).

        Raises:
            MemoryError: There is none for the sums.
        """
        d_seen_BW, d_weight_W = torch.empty_like(seen_BW), torch.empty_like(weight_W)
        status = self._library.logit_gradients(
            *_sizes(*seen_BW.shape),
            _at(seen_BW, torch.bfloat16),
            _at(weight_W, torch.float32),
            _at(upstream_B, torch.float32),
            _at(d_seen_BW, torch.bfloat16),
            _at(d_weight_W, torch.float32),
        )
        if status:
            raise MemoryError(f"no memory for the gradient of {weight_W.shape[0]} weights")
        return d_seen_BW, d_weight_W


@functools.cache
def step_kernels() -> StepKernels | None:
    """Return the kernels, compiled now if they never were; None where that cannot be.

    Raises:
        ValueError: If ADTOWER_KERNELS makes no sense.
    """
    try:
        path = library()
        return None if path is None else StepKernels(path)
    except OSError as error:
        _LOG.warning("click models train a tenth to a fifth slower than they could: %s", error)
        return None


def library() -> Path | None:
    """Return the compiled library, which is not loaded; None where ADTOWER_KERNELS is "off".

    Raises:
        ValueError: If ADTOWER_KERNELS makes no sense.
        OSError: As ``compiled``.
    """
    mode = os.environ.get("ADTOWER_KERNELS", "")
    if mode not in ("", "off"):
        raise ValueError(f"ADTOWER_KERNELS={mode!r} is not 'off' or unset")
    return None if mode == "off" else compiled()


def compiled(folder: Path | None = None) -> Path:
    """Compile the source unless that was done, and return the library.

    Args:
        folder: Where it lies; ``cache_folder()`` if None.

    Raises:
        OSError: If there is no compiler, it fails, or nothing can be written.
    """
    named = os.environ.get("CC", "")
    try:
        command = shlex.split(named) or ["cc"]
    except ValueError as error:
        raise OSError(f"CC={named!r} is no command: {error}") from error
    if shutil.which(command[0]) is None:
        raise OSError(f"there is no C compiler {command[0]!r}; install gcc, or name one in CC")
    folder = folder or cache_folder()
    processor = read_processor()
    source = SOURCE.read_bytes()
    identity = [*command, *FLAGS, processor.model, *sorted(processor.flags)]
    digest = hashlib.sha256(source + "\n".join(identity).encode()).hexdigest()[:16]
    built = folder / f"step_kernels-{digest}.so"
    if built.is_file():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"step_kernels-{digest}-{os.getpid()}.part"
    try:
        done = subprocess.run(
            [*command, *FLAGS, str(SOURCE), "-o", str(partial), "-lm"],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMPILE_SECONDS,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word"])[0]
            raise OSError(f"{shlex.join(command)} could not compile {SOURCE.name}: {said}")
        partial.replace(built)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} took more than {COMPILE_SECONDS} s") from error
    finally:
        partial.unlink(missing_ok=True)
    return built


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _at(tensor: Tensor, dtype: torch.dtype) -> ctypes.c_void_p:
    assert tensor.dtype == dtype and tensor.is_contiguous() and tensor.device.type == "cpu"
    return ctypes.c_void_p(tensor.data_ptr())
