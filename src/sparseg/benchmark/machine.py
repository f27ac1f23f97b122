"""What a number was measured on: machine, versions and commit. No host name, no user, no paths."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_MEASURED = ("layers", "tokens", "models", "benchmark", "training/losses.py")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the facts that belong beside every timing.

    `load_1min` is the load average before the run: above about 0.5 the machine was not quiet.
    """
    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": os_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": version("monai"),
        "sparseg": version("sparseg"),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        machine["gpu"] = facts.name
        machine["gpu_memory_bytes"] = facts.total_memory
    return machine


def cpu_name() -> str:
    """Model name of the processor and its widest vector instructions, as torch sees them."""
    info = Path("/proc/cpuinfo")
    match = None
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
    name = match.group(1).strip() if match else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def os_name() -> str:
    """Name of the system, e.g. "Ubuntu 24.04.1 LTS (x86_64)"."""
    name = platform.system()
    if name == "Linux":
        try:
            name = platform.freedesktop_os_release()["PRETTY_NAME"]
        except OSError:
            name = "Linux"
    return f"{name} ({platform.machine()})"


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Use `number` CPU threads within, then as many as before; None leaves torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def commit(measured: Sequence[str] = _MEASURED) -> str | None:
    """Short commit of the source tree this package runs from, None outside one.

    Ends in "-dirty" where the `measured` parts of the package, those that make the numbers, differ from it.
    """
    folder = Path(__file__).parents[1]
    # An installed copy may lie inside somebody else's repository; only a tracked file speaks for ours.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    short = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not short:
        return None
    changed = _git(folder, "status", "--porcelain", "--", *measured)
    return f"{short}-dirty" if changed else short


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
