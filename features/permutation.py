"""An order of rows that needs no memory and no state: a function of seed, epoch and place.

Whoever asks for place 5 of epoch 2 gets the same row, on any machine, after any interruption, and
however many workers share the work.

Shape letters: N places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.stable_hash import hash_numbers

ROUNDS = 4
"""Four rounds of a Feistel network with good round functions are indistinguishable from chance:
Luby and Rackoff 1988, doi:10.1137/0217022."""


class Permutation:
    """The numbers 0 to ``size - 1`` in an order drawn by ``seed`` and ``epoch``.

    A Feistel network permutes the next power of four; numbers that leave the range walk on until
    they are back in it.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, size: int, *, seed: int, epoch: int = 0) -> None:
        if min(size, seed, epoch) < 0:
            raise ValueError(f"size {size}, seed {seed} and epoch {epoch} must be 0 or more")
        self.size = size
        bits = max(1, (max(size, 1) - 1).bit_length() + 1 >> 1)
        self._bits, self._mask = np.uint64(bits), np.uint64((1 << bits) - 1)
        start = int(hash_numbers(np.array([epoch]), seed=seed)[0] >> np.uint64(1))
        self._round_seeds = [start + round_ for round_ in range(ROUNDS)]

    def at(self, place_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return what stands at each place, shape (N,).

        Raises:
            ValueError: If a place lies outside.
        """
        place_N = np.asarray(place_N)
        if len(place_N) and (place_N.min() < 0 or place_N.max() >= self.size):
            raise ValueError(
                f"places {place_N.min()} to {place_N.max()} were asked for; there are {self.size}"
            )
        out_N = self._network(place_N.astype(np.uint64))
        outside_N = np.flatnonzero(out_N >= np.uint64(self.size))
        while len(outside_N):
            out_N[outside_N] = self._network(out_N[outside_N])
            outside_N = outside_N[out_N[outside_N] >= np.uint64(self.size)]
        return out_N.astype(np.int64)

    def _network(self, number_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left_N, right_N = number_N >> self._bits, number_N & self._mask
        for seed in self._round_seeds:
            scrambled_N = hash_numbers(right_N, seed=seed) & self._mask
            left_N, right_N = right_N, left_N ^ scrambled_N
        return left_N << self._bits | right_N
