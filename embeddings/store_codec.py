"""Smaller forms of vectors: two bytes a value, one, or a bit; fewer dimensions.

Shape letters: N rows of a block, S dimensions of the source, D dimensions kept, B bytes of D bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["float32", "float16", "int8", "binary"]

Ranging = Literal["per_vector", "per_dimension", "affine"]
"""What an int8 code counts in: a 127th of the vector's largest value, of the dimension's, or a
255th of the way from the dimension's smallest value to its largest."""

WORD_BITS = 64
"""Bits are padded to words of this many."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How vectors of one store become codes, and codes vectors."""

    form: Form
    source_dim: int
    dim: int
    """The first so many dimensions are kept, at length 1 (Matryoshka) where that is fewer."""
    ranging: Ranging | None = None
    """For int8."""
    range_2D: NDArray[np.float32] | None = None
    """For int8 by dimension: smallest value and step of each dimension."""

    def shorten(self, vector_NS: NDArray[np.floating]) -> NDArray[np.float32]:
        """Keep the first dimensions, of length 1; vectors of zeros stay so.

        Raises:
            ValueError: If the vectors are not of the source's size.
        """
        if vector_NS.ndim != 2 or vector_NS.shape[1] != self.source_dim:
            raise ValueError(
                f"vectors of shape {vector_NS.shape} must have the {self.source_dim} dimensions "
                "of the store before it was shortened"
            )
        vector_ND: NDArray[np.float32] = np.asarray(vector_NS[:, : self.dim], np.float32)
        if self.dim == self.source_dim:
            return vector_ND
        length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
        return (vector_ND / np.where(length_N1 == 0, 1, length_N1)).astype(np.float32)

    def encode(self, vector_ND: NDArray[np.float32]) -> tuple[NDArray, NDArray[np.float32]]:
        """Codes of shortened vectors, and the scale of each (ones where it has none)."""
        ones_N = np.ones(len(vector_ND), np.float32)
        if self.form == "binary":
            return pack(vector_ND > 0), ones_N
        if self.form != "int8":
            return vector_ND.astype(self.form), ones_N
        if self.ranging == "per_vector":
            scale_N = np.abs(vector_ND).max(axis=1, initial=0) / 127
            scale_N = np.where(scale_N == 0, 1, scale_N).astype(np.float32)
            return np.rint(vector_ND / scale_N[:, None]).astype(np.int8), scale_N
        low_D, step_D = self._range()
        count_ND = np.rint((vector_ND - low_D) / step_D)
        offset = 128 if self.ranging == "affine" else 127
        # A vector outside of the ranges, which those of the store itself never are, is clipped.
        return np.clip(count_ND - offset, -128, 127).astype(np.int8), ones_N

    def decode(self, code_NB: NDArray, scale_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of codes, (N, D); bits become plus and minus one over the root of D."""
        if self.form == "binary":
            bit_ND = np.unpackbits(code_NB, axis=1, count=self.dim)
            sign_ND = bit_ND.astype(np.float32) * 2 - 1
            return (sign_ND * self.dim**-0.5).astype(np.float32)
        if self.form != "int8":
            return code_NB.astype(np.float32)
        if self.ranging == "per_vector":
            return (code_NB * scale_N[:, None]).astype(np.float32)
        low_D, step_D = self._range()
        offset = 128 if self.ranging == "affine" else 127
        return (low_D + (code_NB.astype(np.float32) + offset) * step_D).astype(np.float32)

    def _range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert self.range_2D is not None
        return self.range_2D[0], self.range_2D[1]


def ranges_of(
    low_D: NDArray[np.float32], high_D: NDArray[np.float32], ranging: Ranging
) -> NDArray[np.float32] | None:
    """Smallest value and step of each dimension, (2, D); None where each vector has its own.

    Args:
        low_D: Smallest value of each dimension over the store.
        high_D: Largest one.
        ranging: "per_dimension" makes the range symmetric, so that zero stays zero.
    """
    if ranging == "per_vector":
        return None
    if ranging == "per_dimension":
        high_D = np.maximum(np.abs(low_D), np.abs(high_D))
        step_D = np.where(high_D == 0, 1, high_D / 127)
        return np.stack([-127 * step_D, step_D]).astype(np.float32)
    step_D = np.where(high_D == low_D, 1, (high_D - low_D) / 255)
    return np.stack([low_D, step_D]).astype(np.float32)


def pack(bit_ND: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Eight bits to a byte, padded with zeros to whole words."""
    padding = -bit_ND.shape[1] % WORD_BITS
    return np.packbits(np.pad(bit_ND, ((0, 0), (0, padding))), axis=1)


def hamming(one_QB: NDArray[np.uint8], other_NB: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How many bits differ between each two rows, (Q, N)."""
    one_QW = np.ascontiguousarray(one_QB).view(np.uint64)
    other_NW = np.ascontiguousarray(other_NB).view(np.uint64)
    differing_QN = np.zeros((len(one_QW), len(other_NW)), np.int32)
    for word in range(one_QW.shape[1]):
        differing_QN += np.bitwise_count(one_QW[:, word, None] ^ other_NW[None, :, word])
    return differing_QN
