"""Tiny datasets on disk and hand-made facts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts, ChannelFacts, measure
from sparseg.datasets.load import load_case
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor"}
SHAPE = (20, 18, 16)


def write_dataset(root: Path, num_cases: int = 3, labels: dict[int, str] = LABELS) -> Dataset:
    """Write phantoms with CT values (air, and structures of 100, 200, ... HU) in Decathlon layout."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    cases = []
    for seed in range(num_cases):
        image, label = phantom(seed)
        case = Case(
            f"case{seed}",
            (root / "imagesTr" / f"case{seed}.nii.gz",),
            root / "labelsTr" / f"case{seed}.nii.gz",
        )
        write_image(case.image, image)
        assert case.label is not None
        write_label_map(case.label, label.array[0].astype(np.uint8), label.affine)
        cases.append(case)
    description = {
        "name": "tiny",
        "channel_names": {"0": "CT"},
        "labels": {str(label_id): name for label_id, name in labels.items()},
        "training": [
            {"image": f"imagesTr/{case.name}.nii.gz", "label": f"labelsTr/{case.name}.nii.gz"}
            for case in cases
        ],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return Dataset("tiny", ("CT",), dict(labels), tuple(cases), (), root)


def phantom(seed: int) -> tuple[Volume, Volume]:
    """Image in whole HU (-1000 on the rim, else about 100 per id) and its labels 0, 1, 2."""
    image, labels = make_phantom(SHAPE, num_classes=3, seed=seed)
    values = np.round(image.array)
    values[:, :2] = -1000
    return Volume(values, image.affine, "phantom"), labels


def facts_of(dataset: Dataset) -> list[CaseFacts]:
    """Facts of all training cases, in order."""
    return [measure(*load_case(case, dataset)) for case in dataset.training]


def channel(quantiles: Any = None, **changes: Any) -> ChannelFacts:
    """A channel with the given 201 quantiles (default 0 to 200)."""
    values = np.arange(201.0) if quantiles is None else np.asarray(quantiles, float)
    facts = ChannelFacts(float(values.min()), float(values.max()), 1.0, 0.0, 1.0, tuple(values.tolist()))
    return replace(facts, **changes)


def case_facts(number: int = 0, **changes: Any) -> CaseFacts:
    """Facts of a 100 x 100 x 100 case of 1 mm, all of it body."""
    values: dict[str, Any] = {
        "shape": (100, 100, 100),
        "spacing": (1.0, 1.0, 1.0),
        "codes": "RAS",
        "affine": tuple(np.eye(4).ravel().tolist()),
        "channels": (channel(),),
        "label_counts": {0: 900, 1: 100},
        "image_hash": f"image{number}",
        "label_hash": f"label{number}",
    } | changes
    values.setdefault("body_shape", values["shape"])
    values.setdefault("nonzero_shape", values["shape"])
    return CaseFacts(**values)
