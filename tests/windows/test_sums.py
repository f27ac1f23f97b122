"""Sums in a file are the sums in memory; the file leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparseg.errors import ResourceError
from sparseg.windows.empty import EmptyRule
from sparseg.windows.importance import importance_map
from sparseg.windows.sliding import sliding_window
from sparseg.windows.storage import Storage
from sparseg.windows.sums import WeightedSums

ROI = (8, 6, 4)


def network(windows: Tensor) -> Tensor:
    return torch.cat([windows * 2, windows - windows.mean(dim=(1, 2, 3, 4), keepdim=True)], dim=1)


def image() -> Tensor:
    """Return noise that fills the lower half of an otherwise empty image."""
    result = torch.randn(1, 22, 13, 9, generator=torch.Generator().manual_seed(0))
    result[:, 11:] = 0
    return result


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("empty", [None, EmptyRule(0.0, (10.0, 0.0))], ids=["all", "skipping"])
@pytest.mark.parametrize("max_bytes", [0, 4 * 2574, 8 * 2574 - 1])
def test_a_file_gives_the_same_bits(temporary: Path, max_bytes: int, empty: EmptyRule | None) -> None:
    plain = sliding_window(image(), network, ROI, empty=empty)
    found = sliding_window(image(), network, ROI, empty=empty, storage=Storage(max_bytes))
    assert torch.equal(found, plain)
    assert list(temporary.iterdir()) == []


def test_memory_is_used_while_it_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: int) -> None:
        raise AssertionError

    monkeypatch.setattr("sparseg.windows.storage._map_file", never)
    # Two channels of 22 x 13 x 9 voxels, four bytes each.
    sliding_window(image(), network, ROI, storage=Storage(8 * 2574))
    with pytest.raises(AssertionError):
        sliding_window(image(), network, ROI, storage=Storage(8 * 2574 - 1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_goes_with_the_result(temporary: Path) -> None:
    def mapped() -> bool:
        return (
            "sparseg-sums" in Path("/proc/self/maps").read_text()
            or str(temporary) in Path("/proc/self/maps").read_text()
        )

    found = sliding_window(image(), network, ROI, storage=Storage(0))
    assert mapped()
    del found
    gc.collect()
    assert not mapped()


def test_no_room_for_the_file_is_an_error(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        ResourceError, match=r"received No space left on device for .* GiB; set TMPDIR"
    ) as caught:
        sliding_window(image(), network, ROI, storage=Storage(0))
    assert caught.value.code == "sums-file"
    assert list(temporary.iterdir()) == []


def test_the_mean_by_hand() -> None:
    """Two windows of 2 that share a voxel, with weights 1 and 3; the last voxel is covered by none."""
    weights = torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    sums = WeightedSums(1, (4, 1, 1), weights)
    sums.add((0, 0, 0), torch.tensor([4.0, 8.0]).reshape(1, 2, 1, 1))
    sums.add((1, 0, 0), torch.tensor([16.0, 5.0]).reshape(1, 2, 1, 1))
    assert sums.mean([-7.0]).flatten().tolist() == [4.0, (3 * 8 + 16) / 4, 5.0, -7.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    """A constant that half precision can hold survives about a hundred windows per voxel."""
    found = sliding_window(image(), lambda x: torch.full_like(x, 0.7, dtype=dtype), ROI, overlap=0.75)
    value = float(torch.tensor(0.7, dtype=dtype))
    assert found.dtype == torch.float32
    assert float((found - value).abs().max()) <= 3e-6 * value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sums_on_the_device_are_those_of_the_cpu() -> None:
    plain = sliding_window(image(), network, ROI, empty=EmptyRule(0.0, (10.0, 0.0)))
    found = sliding_window(
        image(), network, ROI, empty=EmptyRule(0.0, (10.0, 0.0)), device="cuda", sums_device="cuda"
    )
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux gives it")
def test_peak_memory_stays_near_the_budget(tmp_path: Path) -> None:
    """Sums of 256 MiB in a file cost tens of MiB of memory."""
    code = (
        "import resource, torch\n"
        "from sparseg.windows.storage import Storage\n"
        "from sparseg.windows.sums import WeightedSums\n"
        "from sparseg.windows.grid import window_starts\n"
        "torch.set_num_threads(1)\n"
        "roi = (32, 32, 32)\n"
        "part = torch.ones(8, *roi)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sums = WeightedSums(8, (512, 128, 128), torch.ones(roi), storage=Storage(16 * 2**20))\n"
        "for start in window_starts((512, 128, 128), roi, 0.0): sums.add(start, part)\n"
        "assert bool((sums.mean()[:, ::100] == 1).all())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    # The sum of the weights, 32 MiB, stays in memory. What the assertion reads counts as well: every 100th
    # plane, a sixteenth of a MiB each.
    assert int(done.stdout) / 1024 <= 32 + 16 + 24


def test_importance_reaches_the_sums() -> None:
    weights = importance_map((4, 4, 4))
    sums = WeightedSums(1, (4, 4, 4), weights)
    value = torch.arange(64.0).reshape(1, 4, 4, 4)
    sums.add((0, 0, 0), value)
    sums.add((0, 0, 0), 3 * value)
    torch.testing.assert_close(sums.mean(), 2 * value)
