"""Rows N15 and N16: what it costs to refuse a header that lies and a file that inflates without end."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from .figures import Figure
from .measured import Reading, measure_reading
from .nifti_faults import SHAPE, nifti_bytes, patched, save

MIB = 2**20
SECONDS, MEMORY_MIB = 0.1, 64


def bomb(path: Path, header: bytes, num_bytes: int) -> Path:
    """Write a valid gzip file that inflates to `header` and `num_bytes` of zeros, in a thousandth of them."""
    # A gzip file may have many members; all the large ones are the same, so making them takes no time.
    member = gzip.compress(bytes(64 * MIB), 9, mtime=0)
    path.write_bytes(gzip.compress(header, mtime=0) + num_bytes // (64 * MIB) * member)
    assert path.stat().st_size < num_bytes / 900
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that can be read."""
    return save(tmp_path_factory.mktemp("sound") / "a.nii.gz", nifti_bytes())


def cheap(figure: Figure, row: str, found: Reading, code: str) -> None:
    """Expect the refusal, in time and memory. The time is that of a machine that does other things, too."""
    figure(row, "silent accepts", int(found.code is None), of=1)
    figure(row, "peak memory above the start", found.mib, limit=MEMORY_MIB, unit="MiB")
    if row == "N16":
        figure(row, "time to refuse", found.seconds, limit=SECONDS, unit="s")
    assert found.code == code
    assert found.mib < MEMORY_MIB
    assert found.seconds < 20 * SECONDS


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("offset", "fmt", "values", "code"),
    [
        (42, "3h", (30000, 30000, 30000), "nifti-too-large"),
        (42, "3h", (1200, 1200, 1200), "nifti-truncated"),
        (108, "f", (1e30,), "nifti-bad-offset"),
    ],
)
def test_n15_a_lie_costs_no_memory(
    tmp_path: Path,
    sound: Path,
    figure: Figure,
    name: str,
    offset: int,
    fmt: str,
    values: tuple[float, ...],
    code: str,
) -> None:
    path = save(tmp_path / name, patched(nifti_bytes(), offset, fmt, *values))
    cheap(figure, "N15", measure_reading(sound, path), code)


@pytest.mark.parametrize("size", [512 * MIB, 10_240 * MIB])
def test_n16_a_bomb_behind_a_small_image(tmp_path: Path, sound: Path, figure: Figure, size: int) -> None:
    """The header says 12 x 14 x 10 voxels; what follows is never inflated."""
    assert nifti_bytes()[42:48] == b"".join(edge.to_bytes(2, "little") for edge in SHAPE)
    path = bomb(tmp_path / "a.nii.gz", nifti_bytes(), size)
    cheap(figure, "N16", measure_reading(sound, path), "nifti-trailing")


@pytest.mark.parametrize(
    ("size", "shape", "options"),
    [
        (512 * MIB, (512, 512, 513), {"max_voxels": 2**27}),
        (10_240 * MIB, (2048, 2048, 640), {}),
    ],
)
def test_n16_a_bomb_that_says_its_size(
    tmp_path: Path,
    sound: Path,
    figure: Figure,
    size: int,
    shape: tuple[int, int, int],
    options: dict[str, int],
) -> None:
    path = bomb(tmp_path / "a.nii.gz", patched(nifti_bytes()[:352], 42, "3h", *shape), size)
    cheap(figure, "N16", measure_reading(sound, path, **options), "nifti-too-large")


def test_n15_n16_memory_is_seen(tmp_path: Path, sound: Path) -> None:
    """A measurement that sees nothing would pass for ever."""
    image = save(tmp_path / "a.nii", nifti_bytes(np.zeros((256, 256, 320), dtype=np.float32)))
    found = measure_reading(sound, image)
    assert found.code is None
    assert 80 < found.mib < 400
