"""What the toolkit asks of the machine that it runs on."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from training.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16, 2**20).sum()  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handled so by Linux's C library")
def test_memory_that_was_freed_is_used_again_without_being_mapped_anew():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    if kept == "True":  # glibc
        assert int(before) > 10 * (int(after) + 10)
