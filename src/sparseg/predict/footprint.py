"""Memory of a case in each phase, from its sizes: a table of measured bytes per voxel.

`scripts/bench_memory.py` measures the table's factors and compares predicted with real peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sparseg.predict.case_size import CaseSize
from sparseg.predict.settings import PredictSettings
from sparseg.shapes import Triple

FLOAT = 4
# Blocks of the allocator that are too small to go back to the system, tables, and the like.
SLACK = 48 * 2**20
# Peak while an image is prepared: bytes per voxel and channel of the model grid, that grid's image included.
PREPARE_MODEL = 16
# The same of the original grid, beside the image itself, where it is resampled.
PREPARE_ORIGINAL = 4
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
        window_bytes: What one window through the network takes beside it, on the CPU.
        seconds_per_window: Time of one window, mirrored images included; mean of the models.
        roi: Window edges in voxels.
        num_classes: K.
        overlaps: Overlap of the windows, for each model.
        label_bytes: Bytes of one id.
        regions: Whether the K outputs are overlapping regions.
    """

    resident_bytes: int
    window_bytes: int
    seconds_per_window: float
    roi: Triple
    num_classes: int
    overlaps: tuple[float, ...]
    label_bytes: int = 1
    regions: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes beside what the process takes anyway, phase by phase.

    Attributes:
        load: While the image is read and prepared.
        windows: While the network runs; the prepared image included.
        finish: While labels are made, measured and written; image and logits included.
        prepared: The prepared image, which is handed on.
        in_file: Bytes of the sums that lie in a temporary file.
    """

    load: int
    windows: int
    finish: int
    prepared: int
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
    padded = prod(size.padded_shape(model.roi))
    is_padded = size.padded_shape(model.roi) != size.model_shape
    prepared = FLOAT * size.num_channels * prod(size.model_shape)
    sums = FLOAT * model.num_classes * padded
    in_file = settings.max_bytes is not None and sums > settings.max_bytes
    pages = settings.max_bytes or 0
    held = pages if in_file else sums
    means = len(model.overlaps) > 1
    # Several models: the mean, for regions once more for "absent", beside the sums of the model at work.
    mean = held * (1 + model.regions) if means else 0
    on_device = settings.sums_device != "cpu"
    add = (FLOAT * padded + held) if not on_device else 0
    window = model.window_bytes * settings.batch_size if settings.device == "cpu" else 0
    image = prepared + (FLOAT * size.num_channels * padded if is_padded else 0)
    windows = (
        image + mean + max(FLOAT * padded, add + window + (_window_pages(size, model) if in_file else 0))
    )
    copied = held if on_device else 0
    return Footprint(
        load=_load(size) + SLACK,
        windows=max(windows, image + mean + add + padded + copied) + SLACK,
        finish=prepared + max(held, mean) + _finish(size, model, settings, in_file=in_file) + SLACK,
        prepared=prepared,
        in_file=(sums * ((2 + model.regions) if means else 1)) if in_file else 0,
    )


def _load(size: CaseSize) -> int:
    """Read: the stored numbers beside the values made of them. Prepare: the values beside the model grid."""
    values = size.num_voxels * size.num_channels
    stored = values * (size.stored_bytes + (2 * FLOAT if size.is_scaled else 0))
    resampled = sorted(size.model_shape) != sorted(size.shape)
    model = PREPARE_MODEL * prod(size.model_shape) * size.num_channels
    prepare = model + (PREPARE_ORIGINAL * size.num_voxels if resampled else 0)
    return FLOAT * values + max(stored, prepare)


def _window_pages(size: CaseSize, model: ModelLoad) -> int:
    """Pages that one channel of a window brings in from a file; see `WeightedSums.add`."""
    return model.roi[0] * (FLOAT * model.roi[1] * size.padded_shape(model.roi)[2] + 2**17)


def _finish(size: CaseSize, model: ModelLoad, settings: PredictSettings, *, in_file: bool) -> int:
    """Beside image and logits: labels, the slab at work, then clean-up, previews and the file."""
    labels = model.label_bytes * size.num_voxels
    slab, (_, width, depth) = settings.finish_slab, size.shape
    depth = max(size.shape)  # which axis of the image is the last of the model grid is left open
    tile = TILE_COPIES * FLOAT * model.num_classes * slab * min(TILE, max(width, depth)) * depth
    planes = _planes(size, slab)
    plane = FLOAT * prod(size.padded_shape(model.roi)[1:])
    # The test for sure background looks at a slab's logits whole, and makes three planes of each.
    test = planes * plane * 3
    pages = planes * plane * model.num_classes if in_file else 0
    maps = _maps_share(model, settings) * slab * FLOAT * prod(size.shape) // max(1, min(size.shape))
    after = max(
        CLEANUP * size.num_voxels if settings.cleanup else 0,
        int(WRITE[settings.files.format] * size.num_voxels),
        _PREVIEW_BYTES * prod(min(_PREVIEW_EDGE, edge) for edge in size.shape) if settings.previews else 0,
    )
    return labels + max(pages + test + tile + maps, after)


def _planes(size: CaseSize, slab: int) -> int:
    """Planes of the model grid that a slab of the original one reaches, at most."""
    ratio = max(new / old for new, old in zip(sorted(size.model_shape), sorted(size.shape), strict=True))
    return min(size.model_shape[0], int(slab * ratio) + 2)


def _maps_share(model: ModelLoad, settings: PredictSettings) -> int:
    """Channels that maps are made of while a slab is decided, copies included."""
    return 3 * model.num_classes if settings.files.maps else 0
