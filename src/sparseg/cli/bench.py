"""`sparseg bench`: measure speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

app = cyclopts.App(name="bench", help="Measure speed, memory and cost.")


@app.command
def model(
    *,
    preset: str = "btcv",
    json: Path | None = None,
    pairs: int = 5,
    warmup: int = 1,
    batch: int = 1,
    modes: Annotated[tuple[Literal["inference", "training"], ...], cyclopts.Parameter(negative="")] = (
        "inference",
        "training",
    ),
    device: str = "cpu",
    threads: int | None = None,
    quality: Path | None = None,
) -> int:
    """Time inference and a training step of sparse, dense patch 8 and dense patch 16 in one interleaved run.

    Parameters
    ----------
    preset
        Named model; its dense rivals have the same width, depth and window.
    json
        File for the result.
    pairs
        Timed rounds; each runs every variant once. Ratios need at least 5.
    warmup
        Untimed rounds before.
    batch
        Windows per step.
    modes
        What to time.
    device
        cpu or cuda.
    threads
        CPU threads of the network; default all.
    quality
        metrics.json of an evaluation of trained weights of this preset, to stand beside the times.
    """
    from sparseg.benchmark.model import bench_to_file, table_notes, table_rows
    from sparseg.cli.output import print_table

    result = bench_to_file(
        preset,
        json,
        quality_file=quality,
        pairs=pairs,
        warmup=warmup,
        batch=batch,
        modes=modes,
        device=device,
        threads=threads,
        on_progress=_say,
    )
    header, *rows = table_rows(result)
    print_table(f"sparseg bench model --preset {preset}", header, rows)
    sys.stdout.write("\n".join(table_notes(result)) + "\n")
    if json is not None:
        sys.stdout.write(f"{json}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
