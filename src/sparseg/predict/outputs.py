"""Label files as they are handed over: the suffix says the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparseg.predict.colours import label_colours
from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.seg_nrrd import SUFFIX as SLICER_SUFFIX
from sparseg.volumes.seg_nrrd import write_seg_nrrd


def write_labels(path: Path, labels: np.ndarray, affine: np.ndarray, names: Mapping[int, str]) -> None:
    """Write a label map with the names and colours of its labels.

    Args:
        path: Final name: *.seg.nrrd for 3D Slicer, otherwise *.nii or *.nii.gz; its folder is made.
        labels: `[H, W, D]`, uint8 or uint16.
        affine: 4x4 voxel -> RAS mm.
        names: Id -> name.

    Raises:
        VolumeError, LabelError, GeometryError: as `write_label_map` and `write_seg_nrrd`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_seg_nrrd if path.name.lower().endswith(SLICER_SUFFIX) else write_label_map
    write(path, labels, affine, label_names=names, label_colours=label_colours(names))
