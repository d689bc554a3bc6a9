"""What a process held is its own, not that of the process that started it."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from features.peak_memory import peak_bytes

before = peak_bytes()
held = bytearray(int(sys.argv[1]))
del held
print(before, peak_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_is_that_of_the_process_alone():
    large = bytearray(300_000_000)
    asked = [sys.executable, "-c", PROGRAM, "100000000"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    del large
    assert 1_000_000 < before < 200_000_000
    assert 95_000_000 < after - before < 150_000_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 100_000
