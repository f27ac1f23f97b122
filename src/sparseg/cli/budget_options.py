"""Options of `sparseg predict` that bound memory and threads, and the line that says what a run will take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

if TYPE_CHECKING:
    from sparseg.predict.budget import RunPlan
    from sparseg.predict.inputs import PredictionCase
    from sparseg.predict.predictor import Predictor

# Read by libraries once, when they are imported.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class BudgetOptions:
    """How much of the machine a run may take.

    Parameters
    ----------
    max_ram
        Most memory the process may take: 6G (decimal), 6GiB (binary) or 80% of the machine's. What saves
        memory is chosen to stay below; a case that cannot is refused before it is read. Default: what is
        free decides what is chosen, and nothing is refused.
    max_vram
        Most memory of a CUDA GPU, likewise; beyond it: smaller batches, sums on the host, then the CPU.
    threads
        CPU threads of the network and of numerical libraries; default all.
    """

    max_ram: str | None = None
    max_vram: str | None = None
    threads: int | None = None

    def apply_threads(self) -> None:
        """Set the threads, for libraries that are not imported yet as well.

        Raises:
            ConfigError: less than one.
        """
        if self.threads is None:
            return
        if self.threads < 1:
            from sparseg.errors import ConfigError

            raise ConfigError(
                "there must be at least one thread",
                received=self.threads,
                remedy="e.g. --threads 4",
                where="--threads",
                code="threads",
            )
        if "torch" not in sys.modules:
            os.environ.update(dict.fromkeys(_THREADS, str(self.threads)))
        import torch

        torch.set_num_threads(self.threads)

    def prepare(self, predictor: Predictor, cases: Sequence[PredictionCase], out: Path) -> None:
        """Plan the run, say what it will take, and let the predictor run so.

        Raises:
            ConfigError: a limit that cannot be read, or one of GPU memory without a GPU.
            ResourceError: no room on the disk.
        """
        from sparseg.predict.budget import apply_plan, limit_gpu, plan_run
        from sparseg.predict.estimate import require_disk
        from sparseg.predict.machine import total_memory

        max_ram = bytes_of(self.max_ram, "--max-ram", total_memory)
        max_vram = bytes_of(self.max_vram, "--max-vram", lambda: _gpu_memory(predictor.settings.device))
        if max_vram is not None:
            limit_gpu(predictor.settings.device, max_vram)
        plan = plan_run(predictor, cases, max_ram=max_ram, max_vram=max_vram)
        for line in plan_lines(plan, crops=predictor.card.preprocess.foreground_crop):
            sys.stderr.write(f"{line}\n")
        if plan.estimate is not None:
            require_disk(plan.estimate, out)
        apply_plan(predictor, plan)


def bytes_of(text: str | None, where: str, total: Callable[[], int]) -> int | None:
    """Read `6G`, `6GiB`, `512M` or `80%`; None of nothing.

    Args:
        text: What the user wrote.
        where: The option.
        total: Gives what 100 % are.

    Raises:
        ConfigError: anything else, or nothing at all.
    """
    if text is None:
        return None
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        if text.strip().endswith("%"):
            found = int(float(text.strip()[:-1]) / 100 * total())
        else:
            found = int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except (ValidationError, ValueError, OverflowError):
        found = 0
    if found > 0:
        return found
    from sparseg.errors import ConfigError

    raise ConfigError(
        "a limit of memory must be a number above 0 with its unit, or a share",
        received=text,
        remedy=f"e.g. {where} 6G, {where} 512MiB or {where} 80%",
        where=where,
        code="memory-limit",
    )


def plan_lines(plan: RunPlan, *, crops: bool) -> list[str]:
    """What a run will take, in one line, and one more if something was changed to fit or does not.

    Args:
        plan: The plan.
        crops: Whether images are cropped to the patient first, so that they take less than their headers say.
    """
    from sparseg.predict.estimate import duration_text, size_text

    found = plan.estimate
    if found is None:
        return []
    cases = "1 case" if found.num_cases == 1 else f"{found.num_cases} cases"
    unknown = f" ({found.num_unknown} of unknown size)" if found.num_unknown else ""
    most = "at most" if crops else "about"
    shape = " x ".join(map(str, found.largest))
    lines = [
        f"{cases}{unknown}, largest {shape}: {most} {size_text(found.memory_bytes)} of memory "
        f"(of {size_text(plan.allowed)} allowed), {duration_text(found.seconds)}, "
        f"{size_text(found.disk_bytes)} of disk"
        + (f" and {size_text(found.temporary_bytes)} of temporary files" if found.temporary_bytes else "")
    ]
    if not plan.fits and plan.guard is None:  # with a guard, the error of the case says more
        lines.append("warning: the largest case may need more memory than there is")
    if plan.changes:
        lines.append(f"to save memory: {', '.join(plan.changes)}")
    return lines


def _gpu_memory(device: str) -> int:
    """Memory of a GPU; for other devices any number will do, since `limit_gpu` refuses them."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else 2**40
