"""What a header says is what reading the whole image gives, in every format."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from hazards.dicom_faults import make_slices, save_series
from sparseg.errors import VolumeError
from sparseg.volumes.grid import read_grid
from sparseg.volumes.io import read_volume
from sparseg.volumes.itk import write_itk
from sparseg.volumes.volume import Volume

AFFINE = np.array([[0, 0, -2.0, 5], [1.5, 0, 0, -7], [0, 1.0, 0, 9], [0, 0, 0, 1]])


def values(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 50, (channels, 5, 4, 3)).astype(np.int16)


def written(path: Path, channels: int) -> Path:
    if path.suffix in (".nrrd", ".mha"):
        write_itk(path, Volume(values(channels), AFFINE))
    elif path.suffix == ".dcm":
        path.mkdir()
        save_series(path, make_slices())
    else:
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(values(channels), 0, 3), AFFINE), path)
    return path


@pytest.mark.parametrize(
    ("name", "channels", "stored_bytes"),
    [
        ("a.nii", 1, 2),
        ("a.nii.gz", 3, 2),
        ("a.nrrd", 1, 2),
        ("a.nrrd", 3, 2),
        ("a.mha", 1, 2),
        ("a.dcm", 1, 0),
    ],
)
def test_header_and_image_agree(tmp_path: Path, name: str, channels: int, stored_bytes: int) -> None:
    path = written(tmp_path / name, channels)
    found, image = read_grid(path), read_volume(path)
    assert found.shape == image.shape
    assert found.num_channels == image.num_channels == channels
    np.testing.assert_array_equal(found.affine, image.affine)
    assert (found.stored_bytes, found.is_scaled) == (stored_bytes, False)


def test_a_slope_is_seen(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3), AFFINE)
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_grid(tmp_path / "a.nii").is_scaled


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(bytes(400))
    with pytest.raises(VolumeError):
        read_grid(tmp_path / "a.nii")
