"""Memory of a case in each phase, from its sizes: a table of measured bytes per voxel.

`scripts/bench_memory.py` measures the table's factors and compares predicted with real peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from sparseg.predict.case_size import CaseSize
from sparseg.predict.settings import PredictSettings
from sparseg.shapes import Triple

FLOAT = 4
# Blocks of arrays below 32 MiB that the allocator keeps, modules that are loaded late, tables, and the like.
SLACK = 80 * 2**20
# Bytes per voxel while stored numbers become others by a slope, in float64.
SCALING = 8
# Bytes per voxel of one channel while it is brought to mean 0 and deviation 1, in float64.
STANDARDISE = 17
# Slabs are decided in pieces so wide along the second axis; each is held so many times while interpolated.
TILE, TILE_COPIES = 32, 6
# Clean-up numbers the components of a class in 4 bytes, beside masks.
CLEANUP = 7
# Bytes per voxel of the original grid while a file is put together, beside the labels.
WRITE = {"nii.gz": 0.1, "seg.nrrd": 2.0, "dicom-seg": 3.0, "rtstruct": 2.0}
_PREVIEW_EDGE, _PREVIEW_BYTES = 192, 24


@dataclass(frozen=True)
class ModelLoad:
    """What the models at work take, measured.

    Attributes:
        resident_bytes: Memory of the process with the models loaded and no case.
        window_bytes: What each window of a batch takes in the network, on the CPU.
        seconds_per_window: Time of one window, mirrored images included, for each model.
        rois: Window edges in voxels, for each model.
        num_classes: K.
        overlaps: Overlap of the windows, for each model.
        label_bytes: Bytes of one id.
        regions: Whether the K outputs are overlapping regions.
        standardises: Whether channels are brought to mean 0 and deviation 1 (MR).
        batch_bytes: What a batch takes in the network beside its windows, on the CPU.
    """

    resident_bytes: int
    window_bytes: int
    seconds_per_window: tuple[float, ...]
    rois: tuple[Triple, ...]
    num_classes: int
    overlaps: tuple[float, ...]
    label_bytes: int = 1
    regions: bool = False
    standardises: bool = False
    batch_bytes: int = 0

    @property
    def roi(self) -> Triple:
        """Largest window along each axis: no model's image, padded to its window, is larger."""
        h, w, d = (max(edges) for edges in zip(*self.rois, strict=True))
        return h, w, d

    def num_windows(self, size: CaseSize) -> tuple[int, ...]:
        """Windows of a case, for each model."""
        pairs = zip(self.rois, self.overlaps, strict=True)
        return tuple(size.num_windows(roi, overlap) for roi, overlap in pairs)


@dataclass(frozen=True)
class Footprint:
    """Bytes beside what the process takes anyway, phase by phase.

    Attributes:
        load: While the image is read and prepared.
        windows: While the network runs; the prepared image included.
        finish: While labels are made, measured and written; image and logits included.
        in_file: Bytes of the sums that lie in a temporary file.
    """

    load: int
    windows: int
    finish: int
    in_file: int

    def peak(self, *, overlapping: bool) -> int:
        """The highest sum, of one case or of three that follow each other at once."""
        if overlapping:
            return self.load + self.windows + self.finish
        return max(self.load, self.windows, self.finish)


def footprint(size: CaseSize, model: ModelLoad, settings: PredictSettings) -> Footprint:
    """Predict the memory of a case.

    Args:
        size: Its sizes.
        model: The models at work.
        settings: How they run; `max_bytes`, `sums_device`, `finish_slab`, `batch_size`, what is written.
    """
    sums = _Sums.of(size, model, settings)
    prepared = FLOAT * size.num_channels * prod(size.model_shape)
    return Footprint(
        load=_load(size, model) + SLACK,
        windows=prepared + _windows(size, model, settings, sums) + SLACK,
        finish=prepared + max(sums.held, sums.mean) + _finish(size, model, settings, sums) + SLACK,
        in_file=sums.num_bytes + sums.num_bytes * sums.num_means if sums.in_file else 0,
    )


class _Sums(NamedTuple):
    """The sums of the logits: their bytes, whether they lie in a file, and bytes of one in memory.

    Several models have the mean of their probabilities beside it, for regions that of "absent", too.
    """

    num_bytes: int
    in_file: bool
    held: int
    num_means: int

    @classmethod
    def of(cls, size: CaseSize, model: ModelLoad, settings: PredictSettings) -> _Sums:
        num_bytes = FLOAT * model.num_classes * prod(size.padded_shape(model.roi))
        in_file = settings.max_bytes is not None and num_bytes > settings.max_bytes
        held = settings.max_bytes if in_file and settings.max_bytes is not None else num_bytes
        return cls(num_bytes, in_file, held, 1 + model.regions if len(model.overlaps) > 1 else 0)

    @property
    def mean(self) -> int:
        """Bytes in memory of the mean."""
        return self.held * self.num_means


def _windows(size: CaseSize, model: ModelLoad, settings: PredictSettings, sums: _Sums) -> int:
    """Beside the image: it padded, the sums and their weights; a batch, or the mask of voxels not covered."""
    shape = size.padded_shape(model.roi)
    padded = 0 if shape == size.model_shape else FLOAT * size.num_channels * prod(shape)
    batch = model.batch_bytes + model.window_bytes * settings.batch_size
    pages = _window_pages(size, model) if sums.in_file else 0
    # Sums on a GPU come to the CPU at the end.
    return padded + sums.mean + FLOAT * prod(shape) + sums.held + max(batch + pages, prod(shape))


def _load(size: CaseSize, model: ModelLoad) -> int:
    """Reading, then preparing; in both the image as read is held as float32."""
    values, target = size.num_voxels * size.num_channels, prod(size.model_shape)
    several = size.num_channels > 1
    stored = values * (size.stored_bytes + (SCALING if size.is_scaled else 0))
    joined = FLOAT * values if several else 0
    # All channels resampled, the one at work, and the stack that they are put into.
    resampled = FLOAT * target * size.num_channels * (2 if several else 1)
    resample = resampled + 2 * FLOAT * _before_last_axis(size)
    standardise = resampled + (STANDARDISE * target if model.standardises else 0)
    return FLOAT * values + max(stored, joined, resample, standardise)


def _before_last_axis(size: CaseSize) -> int:
    """Voxels between the second and the third axis to be resampled; 0 where an axis keeps its voxels.

    With an axis that keeps its voxels an image is resampled piece by piece, else in a whole before the axis
    that grows most.
    """
    growth = sorted(new / old for new, old in zip(size.model_shape, size.reoriented_shape, strict=True))
    return 0 if 1.0 in growth else int(size.num_voxels * growth[0] * growth[1])


def _window_pages(size: CaseSize, model: ModelLoad) -> int:
    """Pages that one channel of a window brings in from a file; see `WeightedSums.add`."""
    return model.roi[0] * (FLOAT * model.roi[1] * size.padded_shape(model.roi)[2] + 2**17)


def _finish(size: CaseSize, model: ModelLoad, settings: PredictSettings, sums: _Sums) -> int:
    """Beside image and logits: labels, the slab at work, then clean-up, previews and the file."""
    labels = model.label_bytes * size.num_voxels
    slab, (_, width, depth) = settings.finish_slab, size.reoriented_shape
    tile = TILE_COPIES * FLOAT * model.num_classes * slab * min(TILE, width) * depth
    planes = _planes(size, slab)
    plane = FLOAT * prod(size.padded_shape(model.roi)[1:])
    # The test for sure background looks at a slab's logits whole, and makes three planes of each.
    test = planes * plane * 3
    pages = planes * plane * model.num_classes if sums.in_file else 0
    maps = _maps_share(model, settings) * slab * FLOAT * width * depth
    after = max(
        CLEANUP * size.num_voxels if settings.cleanup else 0,
        int(WRITE[settings.files.format] * size.num_voxels),
        _PREVIEW_BYTES * prod(min(_PREVIEW_EDGE, edge) for edge in size.shape) if settings.previews else 0,
    )
    return labels + max(pages + test + tile + maps, after)


def _planes(size: CaseSize, slab: int) -> int:
    """Planes of the model grid that a slab of the original one reaches."""
    growth = size.model_shape[0] / size.reoriented_shape[0]
    return min(size.model_shape[0], int(slab * growth) + 2)


def _maps_share(model: ModelLoad, settings: PredictSettings) -> int:
    """Channels that maps are made of while a slab is decided, copies included."""
    return 3 * model.num_classes if settings.files.maps else 0
