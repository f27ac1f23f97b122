"""Row X3: archives handed to predict that lead out of their folder, link, or never end."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from predict.threshold_model import save_tiny_model
from sparseg.cli.main import run

from .figures import Figure

GIB = 1 << 30
LIMIT_BYTES = 16 << 20
"""What may lie on the disk of an archive that is refused in the middle: one chunk or two of it."""


def plain(name: str) -> Callable[[Path], None]:
    """A sound member, and one with a name that leads out; HERE stands for the folder of the test."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good", b"x")
            archive.writestr(name.replace("HERE", str(path.parent)), b"x")

    return make


def link(path: Path) -> None:
    """A link to the folder above, and a member to be written through it."""
    info = zipfile.ZipInfo("door")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, b"..")
        archive.writestr("door/escaped", b"x")


def bomb(declared: int) -> Callable[[Path], None]:
    """One member that inflates to 10 GiB, and says that it has `declared` bytes."""

    def make(path: Path) -> None:
        # A block that ends with a full flush can be repeated: zlib need not run over 10 GiB.
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(bytes(64 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("bomb", block * 160 + packer.flush())
            # The central directory, which readers go by, is written on closing.
            archive.filelist[0].compress_type = zipfile.ZIP_DEFLATED
            archive.filelist[0].file_size = declared

    return make


def many(path: Path) -> None:
    """A hundred thousand empty members."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100_000):
            archive.writestr(zipfile.ZipInfo(f"s/{number}"), b"")


def tar(mode: str) -> Callable[[Path], None]:
    """A tar archive with all of it: a name that leads out, an absolute one, a link."""

    def make(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name in ("../escaped", str(path.parent / "escaped"), "good"):
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"x"))
            door = tarfile.TarInfo("door")
            door.type, door.linkname = tarfile.SYMTYPE, ".."
            archive.addfile(door)

    return make


ARCHIVES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "parent": ("in.zip", plain("../escaped"), "archive-path"),
    "parent within": ("in.zip", plain("a/../../escaped"), "archive-path"),
    "absolute": ("in.zip", plain("HERE/escaped"), "archive-path"),
    "backslash": ("in.zip", plain("..\\escaped"), "archive-path"),
    "drive": ("in.zip", plain("C:escaped"), "archive-path"),
    "link": ("in.zip", link, "archive-link"),
    "10 GiB": ("in.zip", bomb(10 * GIB), "archive-bytes"),
    "10 GiB that say 100 bytes": ("in.zip", bomb(100), "archive-damaged"),
    "100000 members": ("in.zip", many, "archive-members"),
    "tar": ("in.tar", tar("w"), "unsupported-format"),
    "tar.gz": ("in.tar.gz", tar("w:gz"), "unsupported-format"),
    "tar called zip": ("in.zip", tar("w"), "archive-damaged"),
}


class WeighedDirectory(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    """A temporary folder that says at its end how many bytes it held."""

    most = 0

    def cleanup(self) -> None:
        held = sum(path.stat().st_size for path in Path(self.name).rglob("*") if path.is_file())
        WeighedDirectory.most = max(WeighedDirectory.most, held)
        super().cleanup()

    def __exit__(self, *_: object) -> None:
        self.cleanup()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind[0] == "1" else []) for kind in ARCHIVES]
)
def test_x3_refused(
    kind: str,
    tmp_path: Path,
    model: Path,
    figure: Figure,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, make, code = ARCHIVES[kind]
    make(tmp_path / name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", WeighedDirectory)
    monkeypatch.setattr(WeighedDirectory, "most", 0)
    monkeypatch.chdir(tmp_path)
    # A second, missing case lets the report say which error it was.
    arguments = [tmp_path / name, "none.nii.gz", "--model", model, "--out", tmp_path / "out"]
    returned = run(["predict", *map(str, arguments)])
    assert returned == 2, capsys.readouterr().err
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    strange = {path for path in there if not path.startswith("out/report") and path != "out"}
    strange -= {name, "temporary"}
    figure("X3", "archives that left a file", int(bool(strange)), of=1)
    figure("X3", "bytes unpacked of one refused", WeighedDirectory.most, limit=LIMIT_BYTES, unit="bytes")
    assert strange == set()
    assert WeighedDirectory.most <= LIMIT_BYTES
    rows = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert rows[0]["code"] == code
    assert "archive" in rows[0]["message"]
