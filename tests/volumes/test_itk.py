"""NRRD and MetaImage: what SimpleITK writes is read as SimpleITK reads it, and what is damaged is refused."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from sparseg.errors import GeometryError, LabelError, SparsegError, VolumeError
from sparseg.volumes.io import SUFFIXES, case_name, read_labels, read_volume, source_files
from sparseg.volumes.itk import read_itk, write_itk
from sparseg.volumes.volume import Volume

SHAPE = (7, 6, 5)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def numbers(dtype: str = "i2", channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, 100, (channels, *SHAPE)).astype(dtype)


def oblique() -> np.ndarray:
    a, b = np.radians([20.0, 15.0])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-0.7, 1.3, 2.5])
    affine[:3, 3] = (-20.5, 13.25, 100.0)
    return affine


def by_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array `[C, H, W, D]` and RAS affine as SimpleITK has them."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    array = array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.transpose(2, 1, 0)[None]
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return array, LPS @ affine


def saved(path: Path, array: np.ndarray, *, compressed: bool = False) -> Path:
    """Write `[C, H, W, D]` on the oblique grid by SimpleITK."""
    several = array.shape[0] > 1
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(array.transpose(3, 2, 1, 0) if several else array[0].transpose(2, 1, 0)),
        isVector=several,
    )
    lps = LPS @ oblique()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type_and_packing(tmp_path: Path, suffix: str, compressed: bool, dtype: str) -> None:
    path = saved(tmp_path / f"a b{suffix}", numbers(dtype), compressed=compressed)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, numbers(dtype))
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-12)
    np.testing.assert_array_equal(read_labels(path).array, numbers(dtype))
    assert read_labels(path).array.dtype == np.int32
    assert case_name(path) == "a b"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_vector_voxels_become_channels(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}", numbers("f4", 3))
    np.testing.assert_array_equal(read_volume(path).array, numbers("f4", 3))
    with pytest.raises(VolumeError, match="3 channels"):
        read_labels(path)


def changed(path: Path, *pairs: tuple[str, str]) -> Path:
    """Replace words of the header; latin-1 keeps every byte."""
    text = path.read_bytes().decode("latin-1")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_bytes(text.encode("latin-1"))
    return path


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("a.nrrd", [("space: left-posterior-superior", "space: right-anterior-superior")]),
        ("a.nrrd", [("space: left-posterior-superior", "space: LAS")]),
        ("a.nrrd", [("endian: little", "endian: big")]),
        ("a.nrrd", [("kinds: domain domain domain\n", "")]),
        ("a.nrrd", [("type: short", "type: int16"), ("kinds:", "# a comment\nname:=value\nkinds:")]),
        ("a.mha", [("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")]),
        ("a.mha", [("Offset", "Position"), ("TransformMatrix", "Rotation")]),
        ("a.mha", [("ElementSpacing", "ElementSize = 1 1 1\nElementSpacing")]),
        ("a.mha", [("DimSize", "0008|0060 = CT\n0008|103e = \xc3\xbc = 2\ndim[0] = 3\naux_file =\nDimSize")]),
        ("a.mha", [("DimSize", "Echo = 4\nEcho = 5\nDimSize")]),
    ],
)  # fmt: skip
def test_unusual_headers_read_as_simpleitk_does(
    tmp_path: Path, name: str, pairs: list[tuple[str, str]]
) -> None:
    path = changed(saved(tmp_path / name, numbers()), *pairs)
    array, affine = by_simpleitk(path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_n20_metaimage_made_from_nifti_and_dicom(tmp_path: Path, suffix: str, compressed: bool) -> None:
    """ITK copies the fields of the file that an image came from into the header: dim[0], 0008|0060."""
    image = sitk.ReadImage(str(saved(tmp_path / "a.nii.gz", numbers())))
    image.SetMetaData("0008|0060", "CT")
    path = tmp_path / f"b{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    assert b"\ndim[0] = 3\n" in path.read_bytes()
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, numbers())
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-4)
    np.testing.assert_array_equal(read_labels(path).array, numbers())


@pytest.mark.parametrize(
    "line", ["DimSize = 7 6 5", "Offset = 0 0 0", "CompressedData = False", "= 3", "dim[0]"]
)
def test_fields_that_are_read_are_stated_once(tmp_path: Path, line: str) -> None:
    path = changed(saved(tmp_path / "a.mha", numbers()), ("ElementType", f"{line}\nElementType"))
    with pytest.raises(VolumeError) as info:
        read_volume(path)
    assert info.value.code == "itk-not-metaimage"


def test_a_long_of_metaimage_has_four_bytes(tmp_path: Path) -> None:
    path = changed(saved(tmp_path / "a.mha", numbers("i4")), ("MET_INT", "MET_LONG"))
    np.testing.assert_array_equal(by_simpleitk(path)[0], numbers())
    np.testing.assert_array_equal(read_volume(path).array, numbers())


def test_fourth_axis_of_one_and_channels_last(tmp_path: Path) -> None:
    array = numbers("u1", 2)
    head = (
        "NRRD0005\r\ntype: uint8\r\ndimension: 4\r\nspace: RAS\r\nsizes: 7 6 5 {}\r\nspace directions: "
        "(1,0,0) (0,2,0) (0,0,3) none\r\nencoding: raw\r\nspace units: \"cm\" \"cm\" \"cm\"\r\n"
        "space origin: (1,2,3)\r\n\r\n"
    )  # fmt: skip
    path = tmp_path / "a.nrrd"
    for channels in (1, 2):
        stored = np.moveaxis(array[:channels], 0, 3).tobytes(order="F")
        path.write_bytes(head.format(channels).encode() + stored)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, array[:channels])
        np.testing.assert_array_equal(
            volume.affine, [[10, 0, 0, 10], [0, 20, 0, 20], [0, 0, 30, 30], [0, 0, 0, 1]]
        )


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "100 bytes short": (lambda raw: raw[:-100], "itk-truncated"),
    "8 bytes short": (lambda raw: raw[:-8], "itk-truncated"),
    "1 byte short": (lambda raw: raw[:-1], "itk-truncated"),
    "2 bytes more": (lambda raw: raw + b"xx", "itk-trailing"),
    "in the header": (lambda raw: raw[:40], ""),
    "empty": (lambda raw: raw[:0], "itk-empty"),
    "a web page": (lambda raw: b"<!doctype html>" + raw, ""),
}


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_n12_damaged_files_are_refused(tmp_path: Path, suffix: str, compressed: bool, damage: str) -> None:
    path = saved(tmp_path / f"a{suffix}", numbers("f8"), compressed=compressed)
    change, code = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VolumeError) as info:
        read_volume(path)
    assert info.value.code == code or not code


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_n13_no_bit_flip_of_compressed_data_is_read_as_good(tmp_path: Path, suffix: str) -> None:
    array = numbers("i2")
    path = saved(tmp_path / f"a{suffix}", array, compressed=True)
    raw = path.read_bytes()
    start = raw.index(b"\x1f\x8b" if suffix == ".nrrd" else b"x^", 100)
    wrong = 0
    for bit in np.random.default_rng(0).integers(8 * start, 8 * len(raw), 150).tolist():
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            wrong += not np.array_equal(read_volume(path).array, array)
        except VolumeError:
            continue
    assert wrong == 0


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_n18_changed_headers_give_typed_errors_or_an_image(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, numbers())
    raw, rng = path.read_bytes(), np.random.default_rng(7)
    refused: list[SparsegError] = []
    for _ in range(400):
        changed_bytes = bytearray(raw)
        for position in rng.integers(0, 330, rng.integers(1, 4)).tolist():
            changed_bytes[position] = int(rng.choice(list(b"0123456789-.e() \n=:,\x00\xff")))
        path.write_bytes(changed_bytes)
        try:
            volume = read_volume(path)
        except SparsegError as error:
            refused.append(error)
        else:
            assert np.isfinite(volume.array).all()
            assert volume.array.size == numbers().size
    assert 100 < len(refused) < 400
    assert all(error.code and error.remedy for error in refused)


REFUSED: list[tuple[str, list[tuple[str, str]], str]] = [
    ("a.nrrd", [("space: left-posterior-superior", "space dimension: 3")], "itk-no-orientation"),
    ("a.nrrd", [("space: left-posterior-superior", "space: scanner-xyz")], "itk-no-orientation"),
    ("a.nrrd", [("domain domain domain", "RGB-color domain domain")], "itk-kinds"),
    ("a.nrrd", [("domain domain domain", "complex domain domain")], "itk-kinds"),
    ("a.nrrd", [("encoding: raw", "encoding: bzip2")], "itk-encoding"),
    ("a.nrrd", [("encoding: raw", "encoding: ascii")], "itk-encoding"),
    ("a.nrrd", [("type: short", "type: block")], "itk-type"),
    ("a.nrrd", [("dimension: 3", "dimension: 2")], "itk-dimension"),
    ("a.nrrd", [("sizes: 7 6 5", "sizes: 7 6 0")], "itk-bad-size"),
    ("a.nrrd", [("sizes: 7 6 5", "sizes: 7 6")], "itk-bad-size"),
    ("a.nrrd", [("sizes: 7 6 5", "sizes: 30000 30000 30000")], "itk-too-large"),
    ("a.nrrd", [("sizes: 7 6 5", "sizes: 7 6 1000")], "itk-truncated"),
    ("a.nrrd", [("endian: little\n", "")], "itk-header"),
    ("a.nrrd", [("endian: little", "byte skip: 4\nendian: little")], "itk-skip"),
    ("a.nrrd", [("space origin: (", "space origin: (nan,")], "itk-bad-numbers"),
    ("a.nrrd", [("space origin: (", "space units: \"furlong\"\nspace origin: (")], "itk-unit"),
    ("a.nrrd", [("encoding: raw", "data file: ../a.raw\nencoding: raw")], "itk-data-file"),
    ("a.nrrd", [("encoding: raw", "data file: /etc/passwd\nencoding: raw")], "itk-data-file"),
    ("a.nrrd", [("encoding: raw", "data file: LIST\nencoding: raw")], "itk-data-file"),
    ("a.nrrd", [("encoding: raw", "data file: none.raw\nencoding: raw")], "file-missing"),
    ("a.mha", [("Offset = ", "Offzet = ")], "itk-no-orientation"),
    ("a.mha", [("TransformMatrix = ", "Transform = ")], "itk-no-orientation"),
    ("a.mha", [("ElementSpacing = ", "ElementSpacing = -")], "itk-bad-spacing"),
    ("a.mha", [("TransformMatrix = ", "TransformMatrix = 7")], "itk-bad-matrix"),
    ("a.mha", [("NDims = 3", "NDims = 2")], "itk-dimension"),
    ("a.mha", [("DimSize = 7 6 5", "DimSize = 7 -6 5")], "itk-bad-size"),
    ("a.mha", [("DimSize = 7 6 5", "DimSize = 7 6 5000")], "itk-truncated"),
    ("a.mha", [("MET_SHORT", "MET_SHORT_ARRAY")], "itk-type"),
    ("a.mha", [("BinaryData = True", "BinaryData = False")], "itk-encoding"),
    ("a.mha", [("BinaryData = True", "BinaryData = Maybe")], "itk-header"),
    ("a.mha", [("ObjectType = Image", "ObjectType = Tube")], "itk-not-metaimage"),
    ("a.mha", [("LOCAL", "slice%03d.raw 1 5 1")], "itk-data-file"),
    ("a.mha", [("LOCAL", "C:\\a.raw")], "itk-data-file"),
    ("a.mha", [("ElementType", "ElementToIntensityFunctionSlope = 2\nElementType")], "itk-scaled"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pairs", "code"), REFUSED)
def test_what_cannot_be_trusted_is_refused(
    tmp_path: Path, name: str, pairs: list[tuple[str, str]], code: str
) -> None:
    path = changed(saved(tmp_path / name, numbers()), *pairs)
    with pytest.raises(SparsegError) as info:
        read_volume(path)
    assert info.value.code == code
    assert info.value.remedy


def test_n04_shear(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nrrd", numbers())
    raw = re.sub(
        rb"space directions: .*\n", b"space directions: (1,0,0) (0.6,1,0) (0,0,1)\n", path.read_bytes()
    )
    path.write_bytes(raw)
    with pytest.raises(GeometryError) as info:
        read_volume(path)
    assert info.value.code == "itk-shear"


def test_orientation_may_be_assumed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nrrd", numbers())
    changed(path, ("space: left-posterior-superior", "space dimension: 3"))
    volume = read_volume(path, assume_orientation="LPS", affine_choice="refuse")
    np.testing.assert_allclose(volume.affine, np.diag([-0.7, -1.3, 2.5, 1]), atol=1e-12)
    path = changed(saved(tmp_path / "b.nrrd", numbers()), ("space: left-posterior-superior\n", ""))
    raw = re.sub(rb"space (directions|origin): .*\n", b"", path.read_bytes()).replace(
        b"kinds", b"spacings: 1 2 3\nkinds"
    )
    path.write_bytes(raw)
    assert read_volume(path, assume_orientation="RAS").spacing == (1, 2, 3)


def test_n09_not_finite(tmp_path: Path) -> None:
    array = numbers("f8")
    array[0, 1, 2, 3], array[0, 0, 0, 0] = np.nan, 1e40
    path = saved(tmp_path / "a.nrrd", array)
    with pytest.raises(VolumeError, match="2 of 210 voxels"):
        read_volume(path)
    filled = read_volume(path, nonfinite=-5.0).array
    assert filled[0, 1, 2, 3] == filled[0, 0, 0, 0] == -5
    assert (filled == array).sum() == array.size - 2
    with pytest.raises(LabelError):
        read_labels(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_n16_a_bomb_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, numbers("u1"), compressed=True)
    changed(path, ("7 6 5", "400 400 400"))
    with pytest.raises(VolumeError) as info:
        read_volume(path, max_voxels=10**7)
    assert info.value.code == "itk-too-large"
    with pytest.raises(VolumeError) as info:
        read_volume(path)
    assert info.value.code == "itk-truncated"


def test_stream_that_holds_more_than_declared(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.mha", numbers("u1"), compressed=True)
    head = re.sub(rb"CompressedDataSize = .*\n", b"", path.read_bytes()).split(b"LOCAL\n")[0] + b"LOCAL\n"
    path.write_bytes(head + zlib.compress(bytes(10**6)))
    with pytest.raises(VolumeError) as info:
        read_volume(path)
    assert info.value.code == "itk-trailing"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4"])
@pytest.mark.parametrize("channels", [1, 2])
def test_write_and_read_back(tmp_path: Path, name: str, dtype: str, channels: int) -> None:
    array = numbers(dtype, channels)
    write_itk(tmp_path / name, Volume(array, oblique()))
    back, affine = by_simpleitk(tmp_path / name)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    np.testing.assert_allclose(affine, oblique(), atol=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "dtype"), [("a.mhd", "u1"), ("a.nrrd", "f8"), ("none/a.mha", "u1")])
def test_unwritable(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(VolumeError):
        write_itk(tmp_path / name, Volume(numbers(dtype), oblique()))
    assert list(tmp_path.iterdir()) == []


def test_files_that_an_image_is_made_of(tmp_path: Path) -> None:
    names = {"a.mha": ["a.mha"], "b.mhd": ["b.mhd", "b.raw"], "c.nhdr": ["c.nhdr", "c.raw"]}
    for name, files in names.items():
        assert source_files(saved(tmp_path / name, numbers())) == [tmp_path / file for file in files]
    (tmp_path / "b.mhd").write_bytes(b"x")
    assert source_files(tmp_path / "b.mhd") == [tmp_path / "b.mhd"]
    assert source_files(tmp_path) == sorted(tmp_path.iterdir())


def test_missing_and_folder(tmp_path: Path) -> None:
    for name, code in (("none.mha", "file-missing"), ("b.mha", "itk-file")):
        (tmp_path / "b.mha").mkdir(exist_ok=True)
        with pytest.raises(VolumeError) as info:
            read_itk(tmp_path / name)
        assert info.value.code == code
    assert {".nrrd", ".mha", ".mhd"} <= set(SUFFIXES)
