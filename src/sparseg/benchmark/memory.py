"""Peak memory of one variant and mode, each in a process of its own: `python -m sparseg.benchmark.memory`.

CPU: the highest resident size of the process, interpreter and libraries included. CUDA: the highest sum of
tensors, as torch's allocator counts them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

import torch

from sparseg.benchmark.timing import TrainingTimer, random_case
from sparseg.benchmark.variants import MODES, Variant, bench_config, build_variant
from sparseg.errors import SparsegError
from sparseg.predict.machine import peak_bytes_so_far
from sparseg.training.losses import make_loss


def measure_peak_memory(
    preset: str, variant: str, mode: str, *, batch: int = 1, device: str = "cpu", threads: int | None = None
) -> int:
    """Return the peak memory in bytes of one forward pass or training step in a fresh process.

    Raises:
        SparsegError: that process failed, most often for want of memory.
    """
    command = [sys.executable, "-m", "sparseg.benchmark.memory"]
    command += ["--preset", preset, "--variant", variant, "--mode", mode, "--batch", str(batch)]
    command += ["--device", device, "--threads", str(threads or torch.get_num_threads())]
    return peak_of_process(
        command, f"{variant} in {mode}", remedy="if memory ran out, leave this variant or mode out"
    )


def peak_of_process(command: Sequence[str], what: str, *, remedy: str) -> int:
    """Run a process whose last line says `{"peak_memory_bytes": ...}`.

    Args:
        command: Program and arguments.
        what: Whose memory it is, for the error.
        remedy: What helps if it fails.

    Raises:
        SparsegError: that process failed, most often for want of memory.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise SparsegError(
            f"the memory of {what} must be measurable", received=last[0], remedy=remedy, code="bench-memory"
        )
    # MONAI may write lines of its own; ours is the last.
    return int(json.loads(done.stdout.strip().splitlines()[-1])["peak_memory_bytes"])


def run_once(preset: str, name: str, mode: str, *, batch: int, device: torch.device) -> int:
    """Do one pass in this process and return the peak in bytes."""
    config = bench_config(preset)
    variant = build_variant(name, config)
    variant.net.to(device)
    image, target = random_case(config.in_channels, config.num_classes, config.roi_size, batch=batch)
    image, target = image.to(device), target.to(device)
    if mode == "training":
        _train_once(variant, image, target, device)
    else:
        variant.net.eval()
        with torch.inference_mode():
            variant.net(image)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_bytes_so_far()


def _train_once(variant: Variant, image: torch.Tensor, target: torch.Tensor, device: torch.device) -> None:
    timer = TrainingTimer(variant, image, target, make_loss(regions=False), device)
    # A step on zero gradients makes AdamW's state, which every step but the first of a run finds in place.
    for parameter in variant.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    timer.optimizer.step()
    timer.optimizer.zero_grad(set_to_none=True)
    timer.step(lambda _: None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in this process and write one line of JSON."""
    parser = argparse.ArgumentParser(prog="sparseg.benchmark.memory", description=__doc__)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--mode", required=True, choices=MODES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    peak = run_once(
        options.preset,
        options.variant,
        options.mode,
        batch=options.batch,
        device=torch.device(options.device),
    )
    sys.stdout.write(json.dumps({"peak_memory_bytes": peak}) + "\n")


if __name__ == "__main__":
    main()
