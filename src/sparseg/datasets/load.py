"""Read one case and refuse what would train or score wrongly."""

from __future__ import annotations

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.label_table import require_known_ids
from sparseg.errors import DatasetError
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.volume import Volume


def load_case(case: Case, dataset: Dataset) -> tuple[Volume, Volume | None]:
    """Read image `[C,H,W,D]` float32 and labels `[1,H,W,D]` int32, None if the case has none.

    Raises:
        VolumeError: a file that cannot be trusted; labels with channels.
        DatasetError: another number of channels than the dataset declares.
        GeometryError: image and labels on different grids; names both files.
        LabelError: ids that are not whole numbers or not declared, with counts.
    """
    image = read_volume(case.image)
    if image.num_channels != len(dataset.channels):
        raise DatasetError(
            f"images must have {len(dataset.channels)} channels ({', '.join(dataset.channels)})",
            received=image.num_channels,
            remedy="correct channel_names in dataset.json or the image",
            where=case.image,
        )
    if case.label is None:
        return image, None
    labels = read_labels(case.label)
    require_same_grid(image, labels, what="image and labels")
    require_known_ids(labels.array, dataset.labels, where=case.label)
    return image, labels
