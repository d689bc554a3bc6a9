"""Memory that a training process frees and needs again in the next step stays with the process.

glibc hands freed memory back to the system: at once where it was large, and else as soon as the top
of the heap is free. A training step frees nearly all it took, so the next one takes thousands of
pages anew, each by a fault into the kernel. On a virtual machine of two cores this was a
quarter of a step.
"""

from __future__ import annotations

import ctypes

# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

_LARGEST_ON_HEAP = 32 << 20
"""Bytes; glibc allows no more. What is larger is mapped and handed back each time."""
_AHEAD = 64 << 20
"""Bytes that the heap grows by at least."""
_NEVER = 2**31 - 1


def keep_freed_memory_() -> bool:
    """Let this process keep the memory that it frees; return whether its C library can.

    Only glibc's own allocator is spoken to: where another is preloaded, this changes nothing.
    Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {
        _MMAP_THRESHOLD: _LARGEST_ON_HEAP,
        _TRIM_THRESHOLD: _NEVER,
        _TOP_PAD: _AHEAD,
    }
    accepted = [mallopt(name, value) == 1 for name, value in wanted.items()]
    return all(accepted)
