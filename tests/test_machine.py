"""What the toolkit asks of the machine that it runs on."""

import subprocess
import sys

import pytest

from training import machine

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


HUGE = """
import torch
from training.machine import keep_freed_memory

keep_freed_memory()
held = [torch.ones(16, 2**20) for _ in range(4)]  # 64 MiB each
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is handled so by Linux's C library")
@pytest.mark.parametrize("limited", [False, True])
def test_what_is_kept_lies_in_huge_pages_unless_addresses_are_limited(limited):
    if not machine._gives_huge_pages() or not machine.keep_freed_memory():
        pytest.skip("this system gives no huge pages to those who ask")
    limit = "ulimit -v 67108864; " if limited else ""  # KiB
    command = ["bash", "-c", f'{limit}exec "$0" -c "$1"', sys.executable, HUGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kibibytes = int(done.stdout)
    assert kibibytes == 0 if limited else kibibytes > 128 * 1024
