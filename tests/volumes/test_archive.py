"""Row X3: archives that would write elsewhere, link, or never end."""

import stat
import zipfile

import pytest

from sparseg.errors import GeometryError, VolumeError
from sparseg.volumes.archive import is_archive, unpacked


def make_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(path, code, **limits):
    with pytest.raises(VolumeError) as caught, unpacked(path, **limits):
        pytest.fail("it was unpacked")
    assert caught.value.code == f"archive-{code}"
    assert caught.value.remedy


def test_members_come_out_under_numbers_and_go_away_again(tmp_path):
    members = [("s/a.dcm", b"one"), ("s/b", b"two"), ("s/readme.TXT", b"three"), ("s/", b"")]
    members += [("__MACOSX/s/a.dcm", b"x"), ("s/.DS_Store", b"x"), ("s/DICOMDIR", b"x")]
    with unpacked(make_zip(tmp_path / "a.zip", members)) as folder:
        found = {item.name: item.read_bytes() for item in folder.iterdir()}
    assert found == {"000000.dcm": b"one", "000001": b"two", "000002.txt": b"three"}
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "..\\x", "\\x", "C:\\x", "C:x", "a/..", "\\\\host\\share\\x"]
)
def test_names_that_lead_out(name, tmp_path):
    refused(make_zip(tmp_path / "in.zip", [("good", b"1"), (name, b"x")]), "path")
    assert [item.name for item in tmp_path.iterdir()] == ["in.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(kind, tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    refused(make_zip(tmp_path / "in.zip", [(info, b"/etc/passwd")]), "link")


def test_too_many_and_too_large(tmp_path):
    path = make_zip(tmp_path / "in.zip", [(str(number), b"0" * 1000) for number in range(20)])
    refused(path, "members", max_members=19)
    refused(path, "bytes", max_bytes=19_999)
    with unpacked(path, max_members=20, max_bytes=20_000) as folder:
        assert len(list(folder.iterdir())) == 20


def test_ten_gibibytes_are_refused_by_what_they_declare(tmp_path):
    path = make_zip(tmp_path / "in.zip", [("bomb", b"0" * 100)])
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24
    path.write_bytes(content[:at] + (0xFFFFFFF0).to_bytes(4, "little") + content[at + 4 :])
    refused(path, "bytes", max_bytes=2**31)


@pytest.mark.parametrize("declared", [5, 1000])
def test_a_member_that_lies_about_its_size(declared, tmp_path):
    path = make_zip(tmp_path / "in.zip", [("bomb", b"0" * 100)])
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24
    path.write_bytes(content[:at] + declared.to_bytes(4, "little") + content[at + 4 :])
    refused(path, "damaged")


def test_damage(tmp_path):
    whole = make_zip(tmp_path / "in.zip", [("a", bytes(range(256)) * 20)]).read_bytes()
    for name, content in {"cut": whole[:-30], "html": b"<html>", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "damaged")
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    (tmp_path / "flipped").write_bytes(flipped)
    refused(tmp_path / "flipped", "damaged")
    refused(tmp_path / "missing.zip", "disk")


def test_what_counts_as_an_archive(tmp_path):
    (tmp_path / "folder.zip").mkdir()
    assert is_archive(tmp_path / "a.ZIP")
    assert not is_archive(tmp_path / "folder.zip")
    assert not is_archive(tmp_path / "a.tar")


def test_errors_name_the_member_by_its_number_in_the_archive(tmp_path):
    """Not the temporary file; nor the member's own name, which may be a patient's."""
    members = [("s/.DS_Store", b"x"), ("DOE^JOHN/1.dcm", b"one"), ("DOE^JOHN/2", b"two")]
    path = make_zip(tmp_path / "a.zip", members)
    places = []

    def fail():
        with unpacked(path) as folder:
            first, second = sorted(folder.iterdir())
            places.append(folder)
            received = f"{first.name} (9x12) and {second.name} (8x12) of 000777 and 262144"
            raise GeometryError("a rule", received=received, remedy=f"see {folder}", where=second, code="c")

    with pytest.raises(GeometryError) as caught:
        fail()
    assert caught.value.where == f"{path}, member 3"
    assert str(caught.value) == (
        f"{path}, member 3: a rule; received member 2 (9x12) and member 3 (8x12) of 000777 and 262144; "
        f"see {path}"
    )
    assert caught.value.code == "c"
    assert not places[0].exists()
