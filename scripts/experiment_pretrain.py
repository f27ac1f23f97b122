"""Pre-trained against from scratch at equal training steps, several seeds, a seen and an unseen patient.

By default on the CT sample: trained on CT-A, scored on CT-A and on CT-C, another patient. The pre-training
sees the training images only, so that CT-C stays a patient never seen. Writes one dated JSON; runs that are
already there are not repeated, so an interrupted experiment goes on where it stopped.

    python scripts/experiment_pretrain.py --work runs/pretrain_experiment
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from sparseg.benchmark.machine import describe_machine
from sparseg.checkpoints.folder import read_card
from sparseg.checkpoints.pretrained import read_pretrain_card
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.read import read_dataset

VARIANTS = ("scratch", "pretrained")


@dataclass(frozen=True)
class Experiment:
    """What is compared, and where it lies."""

    work: Path
    dataset: Path
    config: Path
    pretrain_steps: int
    train_steps: int
    pretrain_cases: str


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, score it, write the table."""
    options = parse(arguments)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    dataset = options.dataset or work / "ct"
    if options.dataset is None:
        sparseg("sample", "fetch", "ct", "--to", dataset)
    config = work / "train.yaml"
    config.write_text(yaml.safe_dump(settings(options), sort_keys=False), encoding="utf-8")
    experiment = Experiment(
        work, dataset, config, options.pretrain_steps, options.train_steps, options.pretrain_cases
    )
    found = read_dataset(dataset)
    groups = {"seen": labelled(found.training), "unseen": labelled(found.test)}
    rows = []
    for seed in options.seeds:
        for variant in VARIANTS:
            rows.append(run_one(experiment, variant, seed, groups))
            say(f"{variant}, seed {seed}: " + ", ".join(f"{k} {v}" for k, v in rows[-1]["dice"].items()))
    out = options.out or Path("benchmarks") / f"{date.today().isoformat()}-pretrain.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report(experiment, found, rows), indent=1) + "\n", encoding="utf-8")
    say(f"written to {out}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; every default is small enough for a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and predictions")
    parser.add_argument("--dataset", type=Path, help="with labelled test cases; default: the CT sample")
    parser.add_argument("--out", type=Path, help="JSON to write; default: benchmarks/DATE-pretrain.json")
    parser.add_argument("--preset", default="vit_tiny_p8")
    parser.add_argument("--crop", type=int, default=48, help="edge of a crop in voxels")
    parser.add_argument("--spacing", type=float, default=3.0, help="edge of a voxel of the model grid in mm")
    parser.add_argument("--pretrain-steps", type=int, default=600)
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--pretrain-cases", choices=("training", "all"), default="training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args(arguments)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of every training; the pre-training takes model and preprocessing from them."""
    return {
        "preset": options.preset,
        "model": {"roi_size": [options.crop] * 3},
        "preprocess": {"spacing": [options.spacing] * 3, "intensity": {"kind": "ct", "clip": [-200, 300]}},
        # The labels tell left from right.
        "augment": {"flip": [0.0, 0.0, 0.0], "rot90": 0.0},
        "batch_size": 2,
        "max_steps": options.train_steps,
        "validate_every": options.train_steps,
    }


def labelled(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Those cases that can be scored with one label file each."""
    return tuple(case for case in cases if case.label is not None and case.label.name.endswith(".nii.gz"))


def run_one(
    experiment: Experiment, variant: str, seed: int, groups: dict[str, tuple[Case, ...]]
) -> dict[str, Any]:
    """Pre-train if need be, train, predict and score; what is complete is kept."""
    folder = experiment.work / f"{variant}_{seed}"
    record = folder / "row.json"
    if record.is_file():
        row: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return row
    init: list[object] = []
    pretraining: dict[str, Any] = {}
    if variant == "pretrained":
        init = ["--init", experiment.work / f"pretraining_{seed}"]
        pretraining = pretrain(experiment, seed)
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    run = folder / "run"
    sparseg("train", experiment.dataset, "--out", run, "--config", experiment.config, "--seed", seed, *init)
    seconds = time.monotonic() - began
    row = {
        "variant": variant,
        "seed": seed,
        "train_steps": read_card(run / "last").provenance.steps,
        "train_seconds": round(seconds, 1),
        **pretraining,
        "dice": {name: score(experiment, folder, name, cases) for name, cases in groups.items() if cases},
    }
    record.write_text(json.dumps(row), encoding="utf-8")
    return row


def pretrain(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Pre-train with one seed, or go on with a pre-training that was interrupted."""
    out = experiment.work / f"pretraining_{seed}"
    card = read_pretrain_card(out) if (out / "pretrain.json").is_file() else None
    if card is None or card.steps < experiment.pretrain_steps:
        steps: list[object] = ["--max-steps", experiment.pretrain_steps]
        new: list[object] = ["--config", experiment.config, "--seed", seed]
        new += ["--set", f"cases={experiment.pretrain_cases}"]
        sparseg("pretrain", experiment.dataset, "--out", out, *steps, *(["--resume"] if card else new))
    card = read_pretrain_card(out)
    return {
        "pretrain_steps": card.steps,
        "pretrain_seconds": round(60 * card.minutes, 1),
        "pretrain_loss": card.loss,
        "pretrain_images": card.num_cases,
    }


def score(experiment: Experiment, folder: Path, group: str, cases: tuple[Case, ...]) -> float | None:
    """Mean Dice over classes and cases of the weights after the last step."""
    predictions, references = folder / f"{group}_predictions", folder / f"{group}_references"
    references.mkdir(parents=True)
    for case in cases:
        assert case.label is not None  # `labelled` chose them
        shutil.copyfile(case.label, references / f"{case.name}.nii.gz")
        sparseg("predict", case.image, "--model", folder / "run" / "last", "--out", predictions)
        written = predictions / f"{case.image.name.removesuffix('.nii.gz')}.nii.gz"
        if written.name != f"{case.name}.nii.gz":
            written.rename(predictions / f"{case.name}.nii.gz")
    metrics = folder / f"{group}.json"
    sparseg(
        *("evaluate", "--pred", predictions, "--ref", references),
        *("--labels", experiment.dataset, "--out", metrics),
    )
    value: float | None = json.loads(metrics.read_text(encoding="utf-8"))["mean"]["dice"]
    return value


def report(experiment: Experiment, dataset: Dataset, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and mean and spread per variant as they came out."""
    return {
        "date": date.today().isoformat(),
        "dataset": dataset.name,
        "machine": describe_machine(torch.device("cpu")),
        "settings": yaml.safe_load(experiment.config.read_text(encoding="utf-8")),
        "pretrain_cases": experiment.pretrain_cases,
        "note": "seen: the case that was trained on; unseen: another patient. Equal training steps; those of "
        "the pre-training come on top",
        "rows": rows,
        "summary": {variant: summarize(rows, variant) for variant in VARIANTS},
    }


def summarize(rows: list[dict[str, Any]], variant: str) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and range of the Dice of one variant."""
    chosen = [row["dice"] for row in rows if row["variant"] == variant]
    result: dict[str, Any] = {}
    for group in dict.fromkeys(name for dice in chosen for name in dice):
        values = [dice[group] for dice in chosen if dice.get(group) is not None]
        if values:
            result[group] = {
                "seeds": len(values),
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "range": [min(values), max(values)],
            }
    return result


def sparseg(*arguments: object) -> None:
    """Run a command of the program under test; its failure ends the experiment."""
    command = [sys.executable, "-m", "sparseg", *map(str, arguments)]
    say(f"$ sparseg {' '.join(map(str, arguments))}")
    # More threads than cores spin on a CPU that is shared.
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=subprocess.DEVNULL)


def say(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
