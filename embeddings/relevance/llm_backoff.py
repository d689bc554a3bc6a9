"""How long to wait before asking again, and a pause that all callers keep."""

from __future__ import annotations

import asyncio
import random
import time


def wait_s(attempt: int, *, first_s: float, longest_s: float, rng: random.Random) -> float:
    """Draw a wait in [first_s * 2^(attempt-1) / 2, first_s * 2^(attempt-1)], in seconds.

    Half of it is drawn, so that callers who failed together do not come back together.

    Args:
        attempt: How many attempts have failed, from 1.
        first_s: Longest wait after the first failure.
        longest_s: No wait is longer.
        rng: Draws the jitter.

    Source:
        "equal jitter" of M. Brooker, Exponential backoff and jitter, AWS Architecture Blog, 2015.
    """
    # 2^30 is past any limit; a float overflows after a thousand attempts.
    ceiling_s = min(first_s * 2.0 ** min(attempt - 1, 30), longest_s)
    return ceiling_s * (0.5 + 0.5 * rng.random())


class Pause:
    """A moment before which nobody calls: what one caller is told, all of them heed."""

    def __init__(self) -> None:
        self._until_s = 0.0

    def extend(self, seconds: float) -> None:
        """Nobody calls for this long from now."""
        self._until_s = max(self._until_s, time.monotonic() + seconds)

    async def over(self) -> None:
        """Wait until it is over, extensions meanwhile included."""
        while (left_s := self._until_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
