"""`sparseg synth`: a synthetic dataset from one labelled volume."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts

if TYPE_CHECKING:
    from sparseg.datasets.synth.config import SynthConfig
    from sparseg.datasets.synth.generate import Original

Layout = Literal["decathlon", "nnunet", "datalist", "bids", "folders", "table", "dicom"]


_GridShape = Annotated[
    tuple[int, int, int] | None,
    cyclopts.Parameter(negative="", help="Voxels per axis, e.g. 96 96 96; default: the source's."),
]
_Spacing = Annotated[
    tuple[float, float, float] | None,
    cyclopts.Parameter(negative="", help="Voxel edges in mm, e.g. 1.5 1.5 2; default: the source's."),
]
_Native = Annotated[
    bool,
    cyclopts.Parameter(negative="", help="Keep thick slices as they are instead of resampling to the grid."),
]
_Modality = Annotated[
    Literal["ct", "mr"] | None,
    cyclopts.Parameter(help="ct keeps the HU of the source's tissues, mr (default) draws any contrast."),
]
_Intensity = Annotated[
    Literal["classes", "image"] | None,
    cyclopts.Parameter(
        help="classes (default) draws the intensities per tissue, image warps the real image."
    ),
]


def synth(
    labels: Path | None = None,
    /,
    *,
    to: Path,
    image: Path | None = None,
    phantom: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    num_cases: int = 10,
    num_test: int = 0,
    layout: Layout = "decathlon",
    names: Path | None = None,
    modality: _Modality = None,
    intensity: _Intensity = None,
    channels: int | None = None,
    shape: _GridShape = None,
    spacing: _Spacing = None,
    native_resolution: _Native = False,
    seed: int | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = (),
    workers: int | None = None,
) -> int:
    """Make a labelled dataset of synthetic subjects from one labelled volume.

    The structures are deformed, and painted with random intensities or with the real image. Every file says
    that it is synthetic. For demonstrations, tests and pre-training: what is measured on such cases says
    nothing about patients.

    Parameters
    ----------
    labels
        Label file of the source volume; left out with --phantom.
    to
        Folder to write; must be new or empty.
    image
        Image of the source volume; ct and image intensities need it, mr with classes can do without.
    phantom
        Start from a built-in phantom instead of files.
    num_cases
        Training cases.
    num_test
        Test cases, with labels.
    layout
        Layout of the dataset.
    names
        Names of the labels: a dataset folder, or a YAML or JSON file with id: name.
    channels
        MR contrasts per subject, 1 to 4.
    seed
        Seed of all random choices; default 0.
    config
        YAML file with settings.
    set_
        One setting, e.g. --set deform_mm=6; may be repeated.
    workers
        Processes; default: all processors. The files are the same for any number.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.datasets.read import read_dataset
    from sparseg.datasets.synth.generate import write_synthetic

    flags = {
        **{"modality": modality, "intensity": intensity, "channels": channels, "seed": seed},
        **{"shape": shape, "spacing": spacing, "native_resolution": native_resolution or None},
    }
    settings = _settings(config, set_, flags)
    original = _original(labels, image, phantom, settings)
    label_names = None if names is None else _names(names)
    with progress_bar() as bar:
        task = bar.add_task("making subjects", total=num_cases + num_test)
        write = partial(write_synthetic, original, settings, to, on_case=lambda _: bar.advance(task))
        write(num_cases=num_cases, num_test=num_test, layout=layout, names=label_names, workers=workers)
    sys.stdout.write(f"{to}: {read_dataset(to).describe()}\n")
    return 0


def _settings(file: Path | None, assignments: tuple[str, ...], flags: dict[str, Any]) -> SynthConfig:
    """Defaults, then the file, then --set, then the flags that are not None."""
    from sparseg.config import load_yaml, merge, override, parse_config
    from sparseg.datasets.synth.config import SynthConfig

    values = load_yaml(file) if file is not None else {}
    given = {key: value for key, value in flags.items() if value is not None}
    return parse_config(SynthConfig, merge(override(values, assignments), given), where=file or "")


def _original(labels: Path | None, image: Path | None, phantom: bool, settings: SynthConfig) -> Original:
    from sparseg.datasets.synth.generate import phantom_original, read_original
    from sparseg.errors import ConfigError

    if phantom == (labels is not None) or (phantom and image is not None):
        raise ConfigError(
            "the source must be a label file or --phantom, one of them",
            received="both" if phantom else "neither",
            remedy="write sparseg synth LABELS --image IMAGE --to FOLDER, or leave LABELS for --phantom",
            where="synth",
            code="synth-source",
        )
    if labels is None:
        return phantom_original(settings.shape, settings.seed)
    return read_original(labels, image)


def _names(path: Path) -> dict[int, str]:
    from sparseg.config import load_yaml
    from sparseg.datasets.label_table import parse_labels
    from sparseg.datasets.read import read_dataset

    if path.is_dir():
        return read_dataset(path, strict=False).labels
    content = load_yaml(path)
    table = content.get("labels", content)
    return parse_labels({str(key): value for key, value in table.items()}, where=path)[0]
