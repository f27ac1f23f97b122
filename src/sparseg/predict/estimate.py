"""What a run will take before it starts: memory, time and disk, from headers and one window."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sparseg.errors import ResourceError, SparsegError
from sparseg.predict.case_size import CaseSize, size_of_case
from sparseg.predict.footprint import ModelLoad, footprint
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.machine import free_disk
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.archive import is_archive

# Everything but the network: seconds per voxel of the original grid, and per logit of the model grid.
SECONDS_PER_VOXEL = 6e-8
SECONDS_PER_LOGIT = 6e-9
# Label maps shrink to a fiftieth or less; a DICOM object holds each class in one bit, or in a byte.
_LABEL_BYTES = {"nii.gz": 0.02, "seg.nrrd": 0.02, "rtstruct": 0.02}
_MAP_BYTES = 0.5
_PREVIEWS = 4 * 2**20


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        num_cases: Cases of the run.
        num_unknown: Those whose headers say nothing, or were not looked at for lack of time.
        largest: Original grid of the largest case.
        memory_bytes: Peak of the process.
        seconds: All cases, one after the other; scaled up to the unknown ones.
        disk_bytes: All files of the output.
        temporary_bytes: Temporary files of one case, in the folder of `tempfile.gettempdir()`.
    """

    num_cases: int
    num_unknown: int
    largest: tuple[int, int, int]
    memory_bytes: int
    seconds: float
    disk_bytes: int
    temporary_bytes: int


def survey(
    predictor: Predictor, cases: Sequence[PredictionCase], *, seconds: float | None = None
) -> dict[str, CaseSize]:
    """Read the headers of cases: name -> sizes, of those whose headers can be read.

    Args:
        predictor: Its model and how it reads.
        cases: The cases.
        seconds: Leave out cases after so long; None looks at all. A folder with a thousand slices takes a
            second or two.
    """
    found = {}
    started = time.monotonic()
    for case in cases:
        if seconds is not None and time.monotonic() - started > seconds:
            break
        if is_archive(case.image):  # its sizes are known once it is unpacked
            continue
        try:
            found[case.name] = size_of_case(
                case.image,
                case.channels,
                predictor.card.preprocess,
                predictor.settings.reading,
                series_uid=case.series_uid,
            )
        except (SparsegError, OSError):
            continue  # whoever reads the image says what is wrong with it, as an error of this case
    return found


def peak_bytes(size: CaseSize, model: ModelLoad, settings: PredictSettings, *, overlapping: bool) -> int:
    """Highest memory of the process during a case, or while cases like it overlap."""
    return model.resident_bytes + footprint(size, model, settings).peak(overlapping=overlapping)


def case_seconds(size: CaseSize, model: ModelLoad) -> float:
    """Time of a case from file to file, at most: no window is taken to be empty."""
    counts = zip(model.num_windows(size), model.seconds_per_window, strict=True)
    network = sum(windows * seconds for windows, seconds in counts)
    rest = SECONDS_PER_VOXEL * size.num_voxels * size.num_channels
    logits = SECONDS_PER_LOGIT * model.num_classes * prod(size.model_shape) * len(model.overlaps)
    return network + rest + logits


def disk_bytes(size: CaseSize, model: ModelLoad, settings: PredictSettings) -> int:
    """Size of the files of a case, at most for ordinary label maps."""
    files = settings.files
    if files.format == "dicom-seg":
        per_voxel = 1.0 if files.labelmap else model.num_classes / 8
    else:
        per_voxel = _LABEL_BYTES[files.format]
    maps = _MAP_BYTES * _num_maps(model, settings)
    return int((per_voxel + maps) * size.num_voxels) + (_PREVIEWS if settings.previews else 0)


def temporary_bytes(size: CaseSize, model: ModelLoad, settings: PredictSettings) -> int:
    """Temporary files of a case: sums, and maps before they are put together."""
    return footprint(size, model, settings).in_file + _num_maps(model, settings) * size.num_voxels


def estimate_run(
    sizes: Mapping[str, CaseSize], num_cases: int, model: ModelLoad, settings: PredictSettings
) -> Estimate:
    """Put together what a run will take.

    Args:
        sizes: At least one case.
        num_cases: Cases of the run.
        model: The models at work.
        settings: How they run.
    """
    overlapping = settings.cases_overlap and num_cases > 1
    scale = num_cases / len(sizes)
    every = sizes.values()
    return Estimate(
        num_cases,
        num_cases - len(sizes),
        max(every, key=lambda size: size.num_voxels).shape,
        max(peak_bytes(size, model, settings, overlapping=overlapping) for size in every),
        scale * sum(case_seconds(size, model) for size in every),
        int(scale * sum(disk_bytes(size, model, settings) for size in every)),
        max(temporary_bytes(size, model, settings) for size in every),
    )


def require_disk(estimate: Estimate, out: Path) -> None:
    """Refuse a run whose files have no room.

    Raises:
        ResourceError: too little free space for the output or for temporary files.
    """
    temporary = Path(tempfile.gettempdir())
    for folder, needed, remedy in (
        (out, estimate.disk_bytes, "choose another --out folder"),
        (temporary, estimate.temporary_bytes, "set TMPDIR to a folder with more room, or allow more memory"),
    ):
        if needed > (free := free_disk(folder)):
            raise ResourceError(
                "the files of a run must fit on the disk",
                received=f"about {size_text(needed)} with {size_text(free)} free",
                remedy=remedy,
                where=folder,
                code="disk-space",
            )


def _num_maps(model: ModelLoad, settings: PredictSettings) -> int:
    counts = {"probabilities": model.num_classes, "uncertainty": 1}
    return sum(counts[kind] for kind in settings.files.maps)


def size_text(num_bytes: float) -> str:
    """Bytes as text in GiB, MiB or, for little, KiB."""
    if num_bytes < 10 * 2**20:
        return f"{num_bytes / 2**10:.0f} KiB"
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def duration_text(seconds: float) -> str:
    """Seconds as text."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
