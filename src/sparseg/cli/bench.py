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


@app.command
def files(
    *,
    preset: str = "vit_tiny_p8",
    model: Path | None = None,
    size: Literal["full", "half"] = "full",
    overlap: float = 0.5,
    json: Path | None = None,
    pairs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
) -> int:
    """Time prediction from file to file against a pipeline of MONAI's transforms, in one interleaved run.

    Parameters
    ----------
    preset
        Named model with 14 classes; its weights are random.
    model
        Model folder to take instead, made by python -m sparseg.benchmark.files_model FOLDER; gives Dice.
    size
        Synthetic CT of 512 x 512 x 160 voxels (minutes per pass on a CPU), or of half as many per axis.
    overlap
        Share of the window by which neighbouring windows overlap.
    json
        File for the result.
    pairs
        Timed rounds; each predicts once in every way. Ratios need at least 5.
    warmup
        Untimed rounds before.
    threads
        CPU threads; default all.
    """
    from sparseg.benchmark.files import files_to_json
    from sparseg.benchmark.files_report import table_notes, table_rows
    from sparseg.cli.output import print_table

    result = files_to_json(
        json,
        preset=preset,
        model=model,
        size=size,
        overlap=overlap,
        pairs=pairs,
        warmup=warmup,
        threads=threads,
        on_progress=_say,
    )
    header, *rows = table_rows(result)
    print_table("sparseg bench files", header, rows)
    sys.stdout.write("\n".join(table_notes(result)) + "\n")
    if json is not None:
        sys.stdout.write(f"{json}\n")
    return 0


@app.command
def windows(
    *,
    preset: str = "vit_tiny_p8",
    model: Path | None = None,
    size: Literal["full", "half"] = "half",
    overlap: float = 0.5,
    json: Path | None = None,
    pairs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
) -> int:
    """Time all windows of a volume with skipping off and on: sparse, dense patch 8, dense patch 16.

    Parameters
    ----------
    preset
        Named model with 14 classes, and the dense models of its size; weights are random.
    model
        Model folder to take instead, alone, made by python -m sparseg.benchmark.files_model FOLDER; gives
        Dice.
    size
        Synthetic CT of 512 x 512 x 160 voxels (minutes per pass on a CPU), or of half as many per axis.
    overlap
        Share of the window by which neighbouring windows overlap.
    json
        File for the result.
    pairs
        Timed rounds; each runs every variant once in every way. Ratios need at least 5.
    warmup
        Untimed rounds before.
    threads
        CPU threads; default all.
    """
    from sparseg.benchmark.windows import windows_to_json
    from sparseg.benchmark.windows_report import table_notes, table_rows
    from sparseg.cli.output import print_table

    result = windows_to_json(
        json,
        preset=preset,
        model=model,
        size=size,
        overlap=overlap,
        pairs=pairs,
        warmup=warmup,
        threads=threads,
        on_progress=_say,
    )
    header, *rows = table_rows(result)
    print_table("sparseg bench windows", header, rows)
    sys.stdout.write("\n".join(table_notes(result)) + "\n")
    if json is not None:
        sys.stdout.write(f"{json}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
