"""What this machine has free: memory within the limits set for this process, and disk."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
# Version 2 first; version 1 keeps each controller in a folder of its own.
_LIMITS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory() -> int:
    """Bytes this process can still take: what the system has available, or less where a limit is set."""
    return min([int(psutil.virtual_memory().available), *_room_in_groups()])


def total_memory() -> int:
    """Bytes of memory in this machine."""
    return int(psutil.virtual_memory().total)


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is, or will be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes_so_far() -> int:
    """The highest resident size of this process since it began, or since a `PeakMeter` started over.

    On Linux not by `getrusage`: its figure survives exec, so a child of a large process would report the
    size of its parent.
    """
    with suppress(OSError):
        status = (_PROC / "status").read_text(encoding="ascii", errors="replace")
        if match := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return int(match[1]) * 1024
    import resource  # POSIX only, so not at the top

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMeter:
    """The highest resident size of this process from now on, in bytes.

    Where the system cannot start over (only Linux can), the highest size so far is all there is, which is
    too high if the process was once larger.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            (_PROC / "clear_refs").write_text("5", encoding="ascii")

    @property
    def peak(self) -> int:
        """The highest size."""
        return peak_bytes_so_far()


def _room_in_groups() -> list[int]:
    """Room in each control group of this process that has a limit of its own."""
    rooms = []
    for controller, limit, usage in _LIMITS:
        for folder in _group_folders(controller):
            with suppress(OSError, ValueError):  # "max" stands for no limit
                allowed = int((folder / limit).read_text(encoding="ascii"))
                used = int((folder / usage).read_text(encoding="ascii")) - _cached(folder / "memory.stat")
                rooms.append(max(0, allowed - used))
    return rooms


def _cached(statistics: Path) -> int:
    """Bytes of a group that hold copies of files, which the system drops when memory is asked for."""
    found = re.search(
        r"^(?:total_)?inactive_file (\d+)$", statistics.read_text(encoding="ascii"), re.MULTILINE
    )
    return int(found[1]) if found else 0


def _group_folders(controller: str) -> list[Path]:
    """The group's folder and those above it; in a container the group itself may be the root."""
    top = _CGROUPS / controller
    inside = Path()
    with suppress(OSError):
        for line in (_PROC / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                inside = Path(path.lstrip("/"))
    return [top / inside, *(top / parent for parent in inside.parents), top]
