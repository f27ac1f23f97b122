"""Freed memory stays with a process that trains, unless its user decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparseg.cli.main import run as run_command
from sparseg.training import allocator
from sparseg.training.allocator import keep_freed_memory

# Pages that the system maps anew for each of 20 large blocks, freed before the next is taken; the first few,
# which come before the heap has grown, do not count.
SCRIPT = """
import resource, sys
import torch
from sparseg.training.allocator import keep_freed_memory
print(keep_freed_memory())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(2**24).fill_(1)
before = faults()
for _ in range(20):
    torch.empty(2**24).fill_(1)
print((faults() - before) / 20)
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    was_set, faults = done.stdout.split()
    return was_set == "True", float(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted by Linux")
def test_large_blocks_are_not_mapped_anew():
    was_set, faults = run()
    assert was_set
    # A block of 64 MiB has 16384 pages of 4 KiB, 32 of 2 MiB.
    assert faults < 16


def test_what_the_user_set_stays():
    assert run(MALLOC_TRIM_THRESHOLD_="131072")[0] is False
    assert run(GLIBC_TUNABLES="glibc.malloc.tcache_count=7")[0] is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


def test_every_command_that_trains_does_it(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append(1))
    none, out = str(tmp_path / "none"), str(tmp_path / "out")
    for command in (["train", none], ["pretrain", none], ["sparsify", none, none]):
        assert run_command([*command, "--out", out]) == 2
    assert len(calls) == 3
