"""`sparseg info`: describe an image, a dataset or a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sparseg.checkpoints.card import ModelCard
    from sparseg.models.network import NetworkConfig
    from sparseg.predict.reading import ReadOptions


def info(
    path: Path,
    /,
    *,
    affine: Literal["refuse", "sform", "qform"] = "refuse",
    assume_orientation: str | None = None,
    nonfinite: float | None = None,
    series_uid: str | None = None,
) -> int:
    """Describe what a path holds. An image that `predict` would refuse is refused here with the same error.

    Parameters
    ----------
    path
        Image file, DICOM series as a folder or a .zip file, dataset folder, model folder or training run.
    affine
        Which form of a NIfTI header to believe where sform and qform contradict each other.
    assume_orientation
        Axis codes, e.g. LPS, for NIfTI files that state no orientation.
    nonfinite
        Value that replaces NaN and infinite voxels of NIfTI files.
    series_uid
        SeriesInstanceUID of the series to take from a DICOM folder that holds several.
    """
    from sparseg.datasets.read import is_dataset
    from sparseg.errors import InputError
    from sparseg.predict.reading import ReadOptions
    from sparseg.volumes.dicom_folder import is_dicom_folder
    from sparseg.volumes.io import SUFFIXES

    if any((path / name).is_file() for name in ("model.json", "best/model.json", "last/model.json")):
        return _model(path)
    is_image = path.name.lower().endswith(SUFFIXES) or is_dicom_folder(path)
    if path.exists() and not is_image and is_dataset(path):
        return _dataset(path)
    if path.is_dir() and not is_image:
        raise InputError(
            "a folder must hold a dataset, a trained model, or one DICOM series",
            received="none of them",
            remedy="name the image file or the series; docs/how-to/datasets.md has the layouts of datasets",
            where=path,
        )
    return _image(path, ReadOptions(affine, assume_orientation, nonfinite, series_uid))


def _image(path: Path, reading: ReadOptions) -> int:
    import numpy as np

    from sparseg.cli.output import print_pairs
    from sparseg.preprocessing.pipeline import require_finite
    from sparseg.volumes.geometry import axis_codes

    image = reading.read(path)
    require_finite(image)
    corner = image.affine[:3, 3]
    print_pairs(
        {
            "image": path,
            "channels": image.num_channels,
            "shape": " x ".join(map(str, image.shape)),
            "spacing (mm)": " x ".join(f"{edge:g}" for edge in image.spacing),
            "axes": f"{axis_codes(image.affine)} (voxel axes run towards these)",
            "first voxel (mm, RAS+)": ", ".join(f"{value:.2f}" for value in corner),
            "extent (mm)": " x ".join(
                f"{n * s:.1f}" for n, s in zip(image.shape, image.spacing, strict=True)
            ),
            "range": f"{float(np.min(image.array)):g} to {float(np.max(image.array)):g}",
            "mean": f"{float(np.mean(image.array, dtype=np.float64)):.2f}",
        }
    )
    return 0


def _dataset(path: Path) -> int:
    from sparseg.cli.output import print_pairs
    from sparseg.datasets.read import read_dataset

    dataset = read_dataset(path)
    labelled = sum(case.labelled for case in dataset.test)
    print_pairs(
        {
            "dataset": dataset.name,
            "layout": dataset.layout,
            "channels": ", ".join(dataset.channels),
            "labels": ", ".join(f"{number} {name}" for number, name in dataset.labels.items())
            or "not declared; training takes the ids of the label files",
            "regions": ", ".join(f"{name} {list(ids)}" for name, ids in dataset.regions.items()) or "none",
            "training cases": len(dataset.training),
            "test cases": f"{len(dataset.test)} ({labelled} with labels)",
        }
    )
    return 0


def _model(path: Path) -> int:
    from sparseg.checkpoints.folder import find_model, load_model, read_card
    from sparseg.cli.output import print_pairs

    card = read_card(path)
    net = load_model(path)
    source = card.provenance
    dice = source.validation_dice
    print_pairs(
        {
            "model": find_model(path),
            "channels": ", ".join(card.channels),
            "labels": ", ".join(f"{number} {name}" for number, name in card.labels.items()),
            "window (voxels)": " x ".join(map(str, card.model.roi_size)),
            **_network(card.model, net.token_counts()),
            "parameters": f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M",
            "spacing (mm)": "as the image" if card.preprocess.spacing is None else card.preprocess.spacing,
            "intensity": card.preprocess.intensity.model_dump(),
            "trained on": f"{source.num_training_cases} case(s) of {source.dataset!r}, {source.steps} steps",
            "validation Dice": dice,
            "note": source.note or "none",
            "test case": "verify.json" if (find_model(path) / "verify.json").is_file() else "none",
        }
    )
    _curve(find_model(path), card)
    return 0


def _network(model: NetworkConfig, counts: list[int]) -> dict[str, object]:
    """What there is to say of a network besides its window: ours, or a peer of MONAI."""
    from sparseg.models.peer_config import PeerConfig

    tokens = {"tokens per stage": " -> ".join(map(str, counts))} if counts else {}
    if isinstance(model, PeerConfig):
        return {"network": f"{model.network}, width {model.feature_size}", **tokens}
    return {
        "patch (voxels)": " x ".join(map(str, model.patch_size)),
        **tokens,
        "width, depth, heads": f"{model.embed_dim}, {model.depth}, {model.num_heads}",
    }


def _curve(model: Path, card: ModelCard) -> None:
    """The model's quality/time curve, where `sparseg calibrate` stored one."""
    from sparseg.cli.output import print_table
    from sparseg.errors import CheckpointError
    from sparseg.predict.calibration import curve_table, read_calibration

    try:
        found = read_calibration(model, card)
    except CheckpointError as error:
        none = error.code == "no-calibration"
        text = "none; `sparseg calibrate` measures it" if none else str(error)
        sys.stdout.write(f"quality/time curve: {text}\n")
        return
    header, *rows = curve_table(found)
    measured = f"{found.num_cases} {found.cases} case(s), {found.machine.device}, {found.date}"
    print_table(f"quality/time curve: {measured}", [str(name) for name in header], rows)
