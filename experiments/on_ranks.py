"""Commands under torchrun: the first rank leads, the others take part in its fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embeddings.ranks import Ranks, apart


@contextmanager
def led_by_the_first_rank(out: Path) -> Iterator[bool]:
    """Let the first rank of a torchrun job do what the block does, and all take part in its fits.

    The fits of click networks are carried out by all ranks together, with sharded id tables.
    Without torchrun this changes nothing.

    Args:
        out: Folder of the run, on storage that all ranks share; what they exchange lies beside it.

    Yields:
        Whether this process does the work; the others come to the block when it is done.
    """
    together = Ranks.current()
    if together.world == 1:
        yield True
        return
    from ranking.sharded_fit import follow_, leading

    jobs = out.with_name(f".{out.name}-ranks")
    if together.rank:
        follow_(jobs, together)
        yield False
    else:
        with leading(jobs, together), apart():
            yield True
    together.leave_()
