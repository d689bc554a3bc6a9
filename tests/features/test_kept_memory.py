"""That freed memory stays: counted in the page faults of a process that takes it again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from features.kept_memory import keep_freed_memory_

if sys.argv[1] == "keep":
    assert keep_freed_memory_()

def faults_of(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        held = [np.ones(500_000) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of(3)
print(faults_of(10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator spoken to is glibc's")
def test_memory_that_is_taken_again_costs_no_page_faults():
    def faults(how):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep") < 100
    assert faults("as it comes") > 10_000, "what the test is about"
