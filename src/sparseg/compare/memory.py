"""Peak memory of one network, in a process of its own: `python -m sparseg.compare.memory` with JSON on stdin.

CPU: the highest resident size of the process, interpreter and libraries included. CUDA: the highest sum of
tensors, as torch's allocator counts them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from sparseg.compare.passes import NetworkSpec, Passes
from sparseg.errors import SparsegError
from sparseg.predict.machine import peak_bytes_so_far
from sparseg.shapes import Triple


def measure_peak(spec: NetworkSpec, roi: Triple, mode: str) -> int:
    """Bytes of one pass in a fresh process.

    Args:
        spec: The network.
        roi: Window in voxels.
        mode: "inference" (one window) or "training" (one step of a batch).

    Raises:
        SparsegError: that process failed, most often for want of memory.
    """
    order = {"spec": spec.as_json(), "roi": roi, "mode": mode, "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-m", "sparseg.compare.memory"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise SparsegError(
            f"the memory of a pass in {mode} must be measurable",
            received=last[0],
            remedy="free memory and measure with --collect, or leave speeds out with --no-speed",
            code="compare-memory",
        )
    # Libraries may write lines of their own; ours is the last.
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


def peak_of(order: dict[str, Any]) -> int:
    """Do one pass in this process and return the peak in bytes."""
    torch.set_num_threads(order["threads"])
    passes = Passes(NetworkSpec(**order["spec"]), tuple(order["roi"]))
    if order["mode"] == "training":
        passes.make_optimizer_state()
        passes.train()
    else:
        passes.infer()
    if passes.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(passes.device))
    return peak_bytes_so_far()


if __name__ == "__main__":
    sys.stdout.write(f"{peak_of(json.load(sys.stdin))}\n")
