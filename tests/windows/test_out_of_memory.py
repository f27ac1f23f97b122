"""Memory that runs out at any step costs time, never a window: the result is the same."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.errors import ResourceError
from sparseg.windows.empty import EmptyRule
from sparseg.windows.fallback import is_out_of_memory
from sparseg.windows.sliding import sliding_window
from sparseg.windows.storage import Storage
from sparseg.windows.sums import HOST, WeightedSums

ROI = (8, 6, 4)
DEVICE = torch.device("cpu", 0)  # not the host: stands in for an accelerator
EMPTY = EmptyRule(0.0, (10.0, 0.0))
Outcome = tuple[Tensor, list[str], list[tuple[int, ...]]]
CPU_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)


class Meter:
    """Runs out of memory at the calls it is told to, counted over all steps that it watches."""

    def __init__(self, failing: Callable[[int], bool], error: Exception | None = None) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.failing = failing
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")

    def use(self, step: str = "") -> None:
        self.calls += 1
        if self.failing(self.calls):
            self.failed.append(step)
            raise self.error


def never(_: int) -> bool:
    return False


def image() -> Tensor:
    """Return noise in the lower half of an otherwise empty image."""
    result = torch.randn(1, 22, 13, 9, generator=torch.Generator().manual_seed(0))
    result[:, 13:] = 0
    return result


def network(windows: Tensor) -> Tensor:
    return torch.cat([windows * 2, windows - windows.mean(dim=(1, 2, 3, 4), keepdim=True)], dim=1)


def run(net: Callable[[Tensor], Tensor], **changes: Any) -> Outcome:
    """Result, what was said, and the windows in the order of `on_batch`; four at a time."""
    said: list[str] = []
    seen: list[tuple[int, ...]] = []
    options = {"batch_size": 4, "device": DEVICE, "sums_device": DEVICE, "to_cpu": lambda: None, **changes}
    result = sliding_window(
        image(),
        net,
        ROI,
        empty=EMPTY,
        on_fallback=said.append,
        on_batch=lambda starts: seen.extend(starts),
        **options,
    )
    return result, said, seen


@pytest.fixture(scope="module")
def plain() -> Outcome:
    result = run(network)
    assert result[1] == []
    assert len(result[2]) > 20
    return result


def test_the_network_at_every_call(plain: Outcome) -> None:
    meter = Meter(never)
    run(metered(meter))
    for failing in range(1, meter.calls + 1):
        result, said, seen = run(metered(Meter(lambda call, failing=failing: call == failing)))
        assert torch.equal(result, plain[0])
        assert seen == plain[2]
        assert said == ["out of memory: going on with 2 windows at a time"]


def metered(meter: Meter) -> Callable[[Tensor], Tensor]:
    def net(windows: Tensor) -> Tensor:
        meter.use()
        return network(windows)

    return net


@pytest.mark.parametrize("failing", range(1, 8))
def test_the_order_of_what_is_tried(plain: Outcome, failing: int) -> None:
    """From the third call on, the network fails `failing` times in a row."""
    moved: list[int] = []
    meter = Meter(lambda call: 3 <= call < 3 + failing)
    everything = [
        "2 windows at a time",
        "1 window at a time",
        "sums on the host",
        "network on the CPU",
        "sums in a temporary file",
    ]
    if failing > len(everything):
        with pytest.raises(ResourceError, match=r"received out of memory on cpu; close") as caught:
            run(metered(meter), to_cpu=lambda: moved.append(meter.calls))
        assert caught.value.code == "out-of-memory"
        return
    result, said, seen = run(metered(meter), to_cpu=lambda: moved.append(meter.calls))
    assert said == [f"out of memory: going on with {what}" for what in everything[:failing]]
    assert moved == ([6] if failing >= 4 else [])  # once, after the fourth failure and before the next call
    assert torch.equal(result, plain[0])
    assert seen == plain[2]


@pytest.mark.parametrize("storage", [None, 0], ids=["memory", "file"])
@pytest.mark.parametrize("step", ["__init__", "add", "mean", "on_host"])
def test_the_sums_at_every_call(
    plain: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    storage: int | None,
) -> None:
    original = getattr(WeightedSums, step)

    def calls_with(meter: Meter) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(WeightedSums, step, also_using(meter, original))
            return run(network, storage=Storage(storage))

    meter = Meter(never)
    calls_with(meter)
    assert meter.calls > 0
    for number in range(1, meter.calls + 1):
        result, said, seen = calls_with(Meter(lambda call, number=number: call == number))
        assert torch.equal(result, plain[0])
        assert seen == plain[2]
        assert len(said) == 1


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_any_two_steps(plain: Outcome, monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    """All steps on one meter, so that the repeated one, or one on the way to it, fails as well."""

    def calls_with(meter: Meter) -> Outcome:
        with monkeypatch.context() as patch:
            for step in ("__init__", "add", "mean", "on_host"):
                patch.setattr(WeightedSums, step, also_using(meter, getattr(WeightedSums, step)))
            return run(metered(meter))

    meter = Meter(never)
    calls_with(meter)
    for first in range(1, meter.calls + 1):
        meter = Meter(lambda call, failing=(first, first + distance): call in failing)  # type: ignore[misc]
        try:
            result, said, seen = calls_with(meter)
        except ResourceError as error:
            # Moving to the host is tried twice, in memory and in a file; it makes new sums by itself.
            assert error.code == "out-of-memory"  # noqa: PT017
            assert set(meter.failed) <= {"on_host", "__init__"}
            continue
        assert torch.equal(result, plain[0])
        assert seen == plain[2]
        assert 1 <= len(said) <= 2


def also_using(meter: Meter, original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        meter.use(original.__name__)
        return original(*args, **kwargs)

    return step


def test_a_full_disk_after_a_full_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise ResourceError("no room", code="sums-file")

    monkeypatch.setattr("sparseg.windows.storage._map_file", full)
    meter = Meter(lambda call: call >= 5)
    with pytest.raises(ResourceError) as caught:
        run(metered(meter), device=HOST, sums_device=HOST)
    assert caught.value.code == "sums-file"


def test_a_network_that_cannot_be_moved_stays() -> None:
    meter = Meter(lambda call: call > 0)
    with pytest.raises(ResourceError, match="out of memory on cpu:0"):
        run(metered(meter), to_cpu=None)


def test_what_a_failed_step_held_is_free_before_it_is_repeated() -> None:
    held: list[weakref.ref[Tensor]] = []

    def net(windows: Tensor) -> Tensor:
        if not held:
            activation = windows.clone()
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError
        assert held[0]() is None
        return network(windows)

    run(net)
    assert held


def test_other_errors_are_not_swallowed() -> None:
    def net(_: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(net)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError(CPU_FULL), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("not enough memory"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torch_says_it_as_expected() -> None:
    """The allocator's own error, not a copy of its text."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(("device", "failures"), [(HOST, 2), (DEVICE, 4)], ids=["host", "device"])
def test_the_file_of_a_full_memory_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, failures: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    meter = Meter(lambda call: 2 <= call < 2 + failures, RuntimeError(CPU_FULL))
    said: list[str] = []
    found = sliding_window(
        image(),
        metered(meter),
        ROI,
        batch_size=2,
        device=device,
        sums_device=device,
        to_cpu=lambda: None,
        on_fallback=said.append,
    )
    assert torch.equal(found, sliding_window(image(), network, ROI))
    assert said[-1] == "out of memory: going on with sums in a temporary file"
    assert list(tmp_path.iterdir()) == []
