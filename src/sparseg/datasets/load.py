"""Read one case and refuse what would train or score wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.label_table import require_known_ids
from sparseg.errors import DatasetError, LabelError
from sparseg.volumes.dicom_labels import is_dicom_file, read_dicom_label_map
from sparseg.volumes.geometry import join_channels, require_same_grid
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.volume import Volume


def load_case(case: Case, dataset: Dataset) -> tuple[Volume, Volume | None]:
    """Read image `[C,H,W,D]` float32 and labels `[1,H,W,D]` int32, None if the case has none.

    Raises:
        VolumeError: a file that cannot be trusted; labels with channels.
        DatasetError: another number of channels than the dataset declares.
        GeometryError: channels, or image and labels, on different grids; names both files.
        LabelError: ids that are not whole numbers or not declared, with counts.
    """
    image = load_image(case, dataset)
    return image, load_labels(case, dataset, image)


def load_image(case: Case, dataset: Dataset) -> Volume:
    """Read the image `[C,H,W,D]` float32, its channels from one file or from one file each.

    Raises:
        VolumeError: a file that cannot be trusted.
        DatasetError: another number of channels than the dataset declares.
        GeometryError: the files of the channels lie on different grids.
    """
    options = {} if case.series_uid is None else {"series_uid": case.series_uid}
    image = join_channels([read_volume(path, **options) for path in case.images])
    if image.num_channels != len(dataset.channels):
        raise DatasetError(
            f"images must have {len(dataset.channels)} channels ({', '.join(dataset.channels)})",
            received=image.num_channels,
            remedy="correct channel_names in dataset.json (channels in sparseg.yaml) or the image",
            where=case.image,
            code="channel-count",
        )
    return image


def load_labels(case: Case, dataset: Dataset, image: Volume) -> Volume | None:
    """Read the labels `[1,H,W,D]` int32 on the grid of `image`; None if the case has none.

    Ids are compared with `dataset.labels` where it declares any.

    Raises:
        VolumeError: a file that cannot be trusted; labels with channels.
        GeometryError: another grid than the image's.
        LabelError: ids that are not whole numbers or not declared; masks that overlap.
    """
    if not case.labelled:
        return None
    if case.label is not None:
        labels = _read_label_file(case.label, dataset, image)
    else:
        labels = _merge_masks(case, dataset, image)
    if dataset.labels:
        require_known_ids(labels.array, dataset.labels, where=case.label_files[0])
    return labels


def _read_label_file(path: Path, dataset: Dataset, image: Volume) -> Volume:
    if is_dicom_file(path):
        ids = {name: label_id for label_id, name in dataset.labels.items() if label_id}
        return read_dicom_label_map(path, image, ids)
    labels = read_labels(path)
    require_same_grid(image, labels, what="image and labels")
    return labels


def _merge_masks(case: Case, dataset: Dataset, image: Volume) -> Volume:
    """One label map from one binary mask per structure."""
    ids = {name: label_id for label_id, name in dataset.labels.items()}
    merged = np.zeros((1, *image.shape), np.int32)
    for name, path in case.masks:
        mask = read_labels(path)
        require_same_grid(image, mask, what="image and mask")
        inside = mask.array > 0
        overlap = int(np.count_nonzero(inside & (merged > 0)))
        if overlap:
            others = [dataset.labels[int(i)] for i in np.unique(merged[inside]) if i]
            raise LabelError(
                "the masks of a case must not overlap",
                received=f"{name} shares {overlap} voxels with {', '.join(others)}",
                remedy="merge them into one label map and declare regions in sparseg.yaml",
                where=path,
                code="label-overlap",
            )
        merged[inside] = ids[name]
    return Volume(merged, image.affine, str(case.label_files[0]))
