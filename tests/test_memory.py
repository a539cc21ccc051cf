"""Memory kept: counted in pages that the system hands out again."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource, torch
from ddpm_codec.memory import keep_freed_memory
assert not {keep} or keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = torch.ones(12 << 20)
for _ in range(32):
    x + x
before = faults()
for _ in range(10):
    x + x
print(faults() - before)
"""


def pages_of_ten_sums(keep):
    """Pages that the system hands out while ten sums of 48 MiB are made and dropped."""
    run = subprocess.run([sys.executable, "-c", _COUNT.format(keep=keep)], check=True,
                         capture_output=True, text=True)  # fmt: skip
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_blocks_are_used_again():
    # malloc gave every activation above 32 MiB back: training spent a third of its time on pages.
    pages = 10 * (48 << 20) // (2 << 20)  # even if every page were a huge one
    assert pages_of_ten_sums(keep=True) < pages / 4
    assert pages_of_ten_sums(keep=False) > pages / 2
