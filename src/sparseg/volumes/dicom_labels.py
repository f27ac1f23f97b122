"""Label maps from DICOM structure sets and segmentations, on the grid of their image."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sparseg.errors import LabelError, VolumeError
from sparseg.volumes.dicom_folder import is_dicom_file
from sparseg.volumes.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from sparseg.volumes.dicom_rtstruct import StructureSet
    from sparseg.volumes.dicom_seg import SegmentationFile

__all__ = ["dicom_label_names", "is_dicom_file", "read_dicom_label_map"]

Found = TypeVar("Found")
_LOG = logging.getLogger("sparseg")
# Contours drawn edge to edge share a few voxels; more means that the structures really overlap.
_MAX_SHARED = 0.05


def dicom_label_names(path: Path | str) -> tuple[str, ...]:
    """Return the segment labels of a SEG, or the names of the structures with an area of an RTSTRUCT.

    Raises:
        VolumeError: neither of the two, or damaged.
    """
    path = Path(path)
    if _modality(path) != "SEG":
        return _open(path).names
    # Without the frames, whose pixels would take far longer than the names.
    return _looked_up(path, "SegmentSequence", _segment_names)


def read_dicom_label_map(path: Path | str, image: Volume, ids: Mapping[str, int]) -> Volume:
    """Read structures as one label map on the grid of an image.

    Structures are drawn in ascending order of their ids: where two share up to 5 % of the smaller one, the
    voxels go to the higher id.

    Args:
        path: RTSTRUCT or SEG file.
        image: The image they were drawn on.
        ids: Name -> id, above 0; structures of other names are left out. Structures that share a name
            or an id are united.

    Returns:
        int32 `[1, H, W, D]`.

    Raises:
        VolumeError: neither an RTSTRUCT nor a SEG, or damaged.
        LabelError: none of the names is there, or structures that overlap.
        GeometryError: contours or frames that do not lie on the slices of the image.
    """
    path = Path(path)
    found = _open(path)
    left_out = [name for name in found.names if name not in ids]
    if left_out:
        _LOG.info("%s: structures left out: %s", path, ", ".join(left_out))
    if len(left_out) == len(found.names):
        raise LabelError(
            f"at least one of {', '.join(sorted(ids)) or 'the declared labels'} must be in the file",
            received=", ".join(found.names) or "no structure with an area",
            remedy="declare labels in sparseg.yaml under the names that the file uses",
            where=path,
            code="label-names",
        )
    merged = np.zeros(image.shape, dtype=np.int32)
    sizes: dict[int, int] = {}
    for label_id in sorted({ids[name] for name in found.names if name in ids}):
        members = [index for index, name in enumerate(found.names) if ids.get(name) == label_id]
        mask = np.logical_or.reduce([found.mask(index, image) for index in members])
        sizes[label_id] = int(np.count_nonzero(mask))
        name = found.names[members[0]]
        if not sizes[label_id]:
            _LOG.warning("%s: %s holds no voxel centre", path, name)
        _require_apart(merged[mask], label_id, sizes, {number: text for text, number in ids.items()}, path)
        merged[mask] = label_id
    return Volume(merged[None], image.affine, source=str(path))


def _require_apart(
    covered: np.ndarray, label_id: int, sizes: Mapping[int, int], names: Mapping[int, str], path: Path
) -> None:
    """Refuse a structure that covers more of an earlier one than a shared edge."""
    others, counts = np.unique(covered[covered > 0], return_counts=True)
    for other, count in zip(others.tolist(), counts.tolist(), strict=True):
        share = count / min(sizes[label_id], sizes[other])
        both = f"{names[label_id]} shares {count} voxels ({share:.1%} of the smaller) with {names[other]}"
        if share > _MAX_SHARED:
            raise LabelError(
                f"structures must not overlap by more than {_MAX_SHARED:.0%} of the smaller",
                received=both,
                remedy="declare only one of the two in sparseg.yaml, or cut one out of the other",
                where=path,
                code="label-overlap",
            )
        _LOG.info("%s: %s; they go to %s", path, both, names[label_id])


def _looked_up(path: Path, keyword: str, look: Callable[[Dataset], Found]) -> Found:
    """What `look` makes of a file read for one keyword; damage may show only when a value is looked at."""
    import pydicom

    from sparseg.volumes.dicom_header import DICOM_FAULTS, unreadable_header

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return look(pydicom.dcmread(path, specific_tags=[keyword], stop_before_pixels=True))
    except DICOM_FAULTS as error:
        raise unreadable_header(path, error) from error


def _segment_names(dataset: Dataset) -> tuple[str, ...]:
    segments = [item for item in dataset.get("SegmentSequence") or [] if item.get("SegmentNumber", 1) != 0]
    return tuple(str(item.get("SegmentLabel") or "").strip() for item in segments)


def _modality(path: Path) -> str:
    return _looked_up(path, "Modality", lambda dataset: str(dataset.get("Modality") or ""))


def _open(path: Path) -> StructureSet | SegmentationFile:
    modality = _modality(path)
    if modality == "RTSTRUCT":
        from sparseg.volumes.dicom_rtstruct import read_structure_set

        return read_structure_set(path)
    if modality == "SEG":
        # highdicom takes over a second to import, which structure sets need not pay for.
        from sparseg.volumes.dicom_seg import read_segmentation

        return read_segmentation(path)
    raise VolumeError(
        "DICOM labels must be a structure set (RTSTRUCT) or a segmentation (SEG)",
        received=f"modality {modality}",
        remedy="give the file that holds the structures, or convert the labels to .nii.gz",
        where=path,
        code="dicom-no-labels",
    )
