"""Time and memory of reading a file, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

# The reading is done once before, on a sound file, so that what is measured is the file and not the imports.
# VmHWM is the high-water mark of the resident memory; writing 5 to clear_refs resets it to what is held now.
_PROGRAM = """
import json, resource, sys, time
from sparseg.errors import SparsegError
from sparseg.volumes.io import read_volume

def peak_kib():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

sound, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
read_volume(sound)
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
except OSError:
    pass
before, start, code = peak_kib(), time.perf_counter(), None
try:
    read_volume(path, **options)
except SparsegError as error:
    code = error.code
print(json.dumps([code, time.perf_counter() - start, (peak_kib() - before) / 1024]))
"""


class Reading(NamedTuple):
    """Error code or None, time, and peak of resident memory above that before."""

    code: str | None
    seconds: float
    mib: float


def measure_reading(sound: Path, path: Path, timeout: float = 60, **options: Any) -> Reading:
    """Read `path` after `sound` in a new process."""
    command = [sys.executable, "-c", _PROGRAM, str(sound), str(path), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    return Reading(*json.loads(done.stdout))
