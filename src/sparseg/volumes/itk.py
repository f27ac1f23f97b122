"""NRRD and MetaImage files: read as strictly as NIfTI, written by SimpleITK.

SimpleITK does not read them here: it accepts a bit flip in the compressed data of a .mha file, and bytes
after the voxels in all of them, so the numbers would have to be read and checked a first time anyway.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from sparseg.errors import GeometryError, VolumeError
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.geometry import affine_from_codes
from sparseg.volumes.metaimage_header import parse_metaimage
from sparseg.volumes.nifti_affine import check_grid
from sparseg.volumes.nrrd_header import parse_nrrd
from sparseg.volumes.packed_bytes import read_bytes_at
from sparseg.volumes.text_header import LPS_TO_RAS, MAX_HEADER, TextHeader, bad_header, spatial_shape
from sparseg.volumes.values import image_values, label_values
from sparseg.volumes.volume import Volume

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_WRITABLE_SUFFIXES = (".nrrd", ".mha")
_WRITABLE_TYPES = (np.uint8, np.int16, np.uint16, np.float32)


def read_itk(
    path: Path | str,
    *,
    max_voxels: int = 2**31,
    assume_orientation: str | None = None,
    nonfinite: float | None = None,
    kind: Literal["image", "label"] = "image",
) -> Volume:
    """Read a .nrrd, .nhdr, .mha or .mhd file, plain or compressed (gzip, zlib).

    Args:
        path: The file; for .nhdr and .mhd the numbers lie in a file beside it.
        max_voxels: Refuse larger images before any memory is taken.
        assume_orientation: Axis codes ("LPS") for a file without any orientation; spacing as its header says.
        nonfinite: Value that replaces NaN and infinities (counted in the log); by default they are refused.
        kind: "image" gives float32; "label" gives int32 ids, exact.

    Returns:
        `[C, H, W, D]`, C = 1 for a file without channels; in memory the first voxel axis runs fastest.

    Raises:
        VolumeError: unreadable, damaged, truncated, not scalar 3-D data, or not finite.
        GeometryError: orientation or spacing missing, impossible or sheared.
        LabelError: a label id that is negative, fractional or not finite.
    """
    path = Path(path)
    where = str(path)
    header = _read_header(path)
    voxels = int(np.prod(spatial_shape(header), dtype=object))
    if voxels > max_voxels:
        raise bad_header(
            f"an image must have at most {max_voxels} voxels",
            "x".join(str(size) for size in spatial_shape(header)),
            path,
            "too-large",
            "raise --max-voxels (argument max_voxels) if it is really that large",
        )
    affine = _affine(header, assume_orientation, path)
    stored = _read_numbers(header)
    if kind == "label":
        return Volume(label_values(stored, where=where), affine, source=where)
    array = image_values(
        stored, nonfinite=nonfinite, where=where, code="itk-nonfinite", may_overflow=header.dtype.kind == "f"
    )
    return Volume(array, affine, source=where)


def read_itk_header(path: Path, *, assume_orientation: str | None = None) -> tuple[TextHeader, np.ndarray]:
    """Read no more than the header; returns it and the affine voxel -> RAS mm.

    Raises:
        VolumeError: missing, or a header that cannot be read.
        GeometryError: orientation or spacing missing, impossible or sheared.
    """
    header = _read_header(path)
    return header, _affine(header, assume_orientation, path)


def data_files(path: Path | str) -> tuple[Path, ...]:
    """Return the file, and the file beside it that holds its numbers if that is another.

    Raises:
        VolumeError: missing, or a header that cannot be read.
        GeometryError: a header whose geometry cannot be read.
    """
    path = Path(path)
    data_file = _read_header(path).data_file
    return (path,) if data_file == path else (path, data_file)


def write_itk(path: Path | str, volume: Volume) -> None:
    """Write a volume as .nrrd or .mha, compressed, in the type of its array; channels become vector voxels.

    Args:
        path: Final name; it exists afterwards only if the file read back equal.
        volume: `[C, H, W, D]` of uint8, int16, uint16 or float32, its axes at right angles.

    Raises:
        VolumeError: another suffix or type, or the file cannot be written or reads back different.
        GeometryError: a sheared grid.
    """
    import SimpleITK as sitk  # noqa: N813 (slow to load, and only writing needs it)

    path = Path(path)
    if path.suffix.lower() not in _WRITABLE_SUFFIXES or volume.array.dtype not in _WRITABLE_TYPES:
        raise VolumeError(
            "a .nrrd or .mha file must be written from uint8, int16, uint16 or float32",
            received=f"{path.suffix} from {volume.array.dtype}",
            remedy="convert the array, or choose another name",
            where=path,
            code="itk-unwritable",
        )
    check_grid(volume.affine, where=str(path), prefix="itk")
    several = volume.num_channels > 1
    array = volume.array.transpose(3, 2, 1, 0) if several else volume.array[0].transpose(2, 1, 0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=several)
    lps = LPS_TO_RAS @ volume.affine
    image.SetSpacing(volume.spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft{path.suffix.lower()}"
        # SimpleITK returns normally on a full disk; the draft is read back and compared before it is kept.
        sitk.WriteImage(image, str(draft), useCompression=True)
        _require_equal(draft, volume, path)
        content = draft.read_bytes()
    write_bytes_atomically(path, content)


def _read_header(path: Path) -> TextHeader:
    parse = parse_nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else parse_metaimage
    return parse(_start(path), path)


def _start(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for its writer, perhaps for ever.
            raise bad_header(
                "the input must be a regular file", "a folder or device", path, "file", "check the path"
            )
        with path.open("rb") as file:
            raw = file.read(MAX_HEADER)
    except (OSError, ValueError) as error:
        raise VolumeError(
            "the file must exist and be readable",
            received=error.strerror if isinstance(error, OSError) else "a name with a NUL byte",
            remedy="check the path",
            where=path,
            code="file-missing" if isinstance(error, FileNotFoundError) else "file-unreadable",
        ) from None
    if not raw:
        raise bad_header("the file must not be empty", "0 bytes", path, "empty", "copy or export it again")
    return raw


def _affine(header: TextHeader, assume_orientation: str | None, path: Path) -> np.ndarray:
    affine = header.affine
    if affine is None:
        if assume_orientation is None:
            raise GeometryError(
                "the header must state an orientation",
                received="none that names the patient's directions",
                remedy="give --assume-orientation LPS (argument assume_orientation) if you know it",
                where=path,
                code="itk-no-orientation",
            )
        if len(header.spacing) != 3:
            raise GeometryError(
                "the header must state the spacing",
                received="none",
                remedy="write the file again with its spacing",
                where=path,
                code="itk-no-spacing",
            )
        affine = affine_from_codes(assume_orientation, header.spacing)
    check_grid(affine, where=str(path), prefix="itk")
    return affine


def _read_numbers(header: TextHeader) -> np.ndarray:
    """Return the stored numbers `[C, H, W, D]`."""
    buffer = read_bytes_at(
        header.data_file,
        header.data_offset,
        header.num_bytes,
        compressed=header.packing == "zlib",
        packed_size=header.packed_size,
    )
    array = buffer.view(header.dtype).reshape(header.sizes, order="F")
    return array[None] if header.channel_axis is None else np.moveaxis(array, header.channel_axis, 0)


def _require_equal(draft: Path, volume: Volume, path: Path) -> None:
    back = read_itk(draft, max_voxels=volume.array.size)
    place_kept = np.allclose(back.affine, volume.affine, rtol=1e-9, atol=1e-6)
    if not place_kept or not np.array_equal(back.array, volume.array.astype(np.float32)):
        raise VolumeError(
            "the written file must read back equal",
            received="different voxels or another place",
            remedy="check the disk and write again",
            where=path,
            code="write-verify",
        )
