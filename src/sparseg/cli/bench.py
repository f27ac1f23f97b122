"""`sparseg bench`: measure speed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
    modes: Annotated[
        tuple[Literal["inference", "training"], ...], cyclopts.Parameter(negative="", consume_multiple=True)
    ] = (
        "inference",
        "training",
    ),
    device: str = "cpu",
    threads: int | None = None,
    quality: Path | None = None,
    variants: Annotated[
        tuple[str, ...] | None, cyclopts.Parameter(negative="", consume_multiple=True)
    ] = None,
    compile: Annotated[
        tuple[Literal["none", "blocks", "all"], ...], cyclopts.Parameter(negative="", consume_multiple=True)
    ] = ("none",),
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
    variants
        What to time, e.g. sparse peers: sparse, dense_p8, dense_p16_monai, naive_sparse; baselines (random,
        evit, dynamicvit, mask_token, tome, ...) or one of them; peers (MONAI's UNETR, SwinUNETR, SegResNet,
        DynUNet and MedNeXt at the preset's window), peers_tiny, or one of them by its preset. Default: the
        first four.
    compile
        Measure each variant as it is (none), with its transformer blocks compiled, or all of it; e.g.
        none blocks for both. Compiling takes minutes, in the untimed rounds.
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
        variants=variants,
        compiled=compile,
        on_progress=_say,
    )
    header, *rows = table_rows(result)
    print_table(f"sparseg bench model --preset {preset}", header, rows)
    sys.stdout.write("\n".join(table_notes(result)) + "\n")
    if json is not None:
        sys.stdout.write(f"{json}\n")
    return 0


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class VolumeOptions:
    """What is run, and how often.

    Parameters
    ----------
    preset
        Named model with 14 classes; its weights are random.
    model
        Model folder to take instead, made by python -m sparseg.benchmark.files_model FOLDER; gives Dice.
    overlap
        Share of the window by which neighbouring windows overlap.
    json
        File for the result.
    pairs
        Timed rounds; each runs everything once. Ratios need at least 5.
    warmup
        Untimed rounds before.
    threads
        CPU threads; default all.
    """

    preset: str = "vit_tiny_p8"
    model: Path | None = None
    overlap: float = 0.5
    json: Path | None = None
    pairs: int = 5
    warmup: int = 1
    threads: int | None = None


@app.command
def files(*, size: Literal["full", "half"] = "full", options: VolumeOptions | None = None) -> int:
    """Time prediction from file to file against a pipeline of MONAI's transforms, in one interleaved run.

    Parameters
    ----------
    size
        Synthetic CT of 512 x 512 x 160 voxels (minutes per pass on a CPU), or of half as many per axis.
    """
    from sparseg.benchmark.files import bench_files
    from sparseg.benchmark.files_report import table_notes, table_rows

    result = _run_volumes(bench_files, size, options or VolumeOptions())
    _print("sparseg bench files", table_rows(result), table_notes(result), options)
    return 0


@app.command
def windows(*, size: Literal["full", "half"] = "half", options: VolumeOptions | None = None) -> int:
    """Time all windows of a volume with skipping off and on: sparse, dense patch 8, dense patch 16.

    With --model that model alone.

    Parameters
    ----------
    size
        Synthetic CT of 512 x 512 x 160 voxels (minutes per pass on a CPU), or of half as many per axis.
    """
    from sparseg.benchmark.windows import bench_windows
    from sparseg.benchmark.windows_report import table_notes, table_rows

    result = _run_volumes(bench_windows, size, options or VolumeOptions())
    _print("sparseg bench windows", table_rows(result), table_notes(result), options)
    return 0


def _run_volumes(measure: Callable[..., dict[str, Any]], size: str, options: VolumeOptions) -> dict[str, Any]:
    from sparseg.benchmark.report import run_to_json

    return run_to_json(
        measure,
        options.json,
        preset=options.preset,
        model=options.model,
        size=size,
        overlap=options.overlap,
        pairs=options.pairs,
        warmup=options.warmup,
        threads=options.threads,
        on_progress=_say,
    )


def _print(
    title: str, rows: Sequence[Sequence[str]], notes: Sequence[str], options: VolumeOptions | None
) -> None:
    from sparseg.cli.output import print_table

    header, *body = rows
    print_table(title, header, body)
    sys.stdout.write("\n".join(notes) + "\n")
    if options is not None and options.json is not None:
        sys.stdout.write(f"{options.json}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
