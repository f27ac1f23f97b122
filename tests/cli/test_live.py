"""The live line: its numbers, its place, and how often it is written."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparseg.cli.live import Watcher, duration, each, lines, minutes_left
from sparseg.training.monitor import Monitor, Silent, StepInfo, memory_in_use


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_bar(*, terminal: bool, width: int = 120) -> Progress:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, markup=False, color_system=None
    )
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not terminal, auto_refresh=False)


def step(number: int, **values: Any) -> StepInfo:
    given: dict[str, Any] = {
        "step": number,
        "max_steps": 1000,
        "loss": 1.0,
        "lr": 1e-3,
        "seconds": 0.5,
        "crops_per_second": 4.0,
        "data_wait": 0.1,
        "share_done": number / 1000,
        "minutes": number / 100,
        "tokens": (1728, 172, 17, 1),
        "memory_bytes": 2_500_000_000,
    }
    return StepInfo(**(given | values))


def plain(clock: Clock | None = None) -> Watcher:
    watcher = Watcher(make_bar(terminal=False), clock or Clock())
    watcher.begin(None, 1000)
    return watcher


def test_it_is_a_monitor() -> None:
    monitors: list[Monitor] = [plain(), Silent()]
    for monitor in monitors:
        monitor.on_step(step(1))
        monitor.on_validation(1, {"liver": 0.5}, 0.5, 0.5, 1)


def test_without_a_terminal_a_line_is_written_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    watcher = plain(clock)
    for number in range(1, 101):
        clock.now += 1.0
        watcher.on_step(step(number))
    written = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in written] == [f"step {n} of 1000" for n in (30, 60, 90)]
    assert written[0] == (
        "step 30 of 1000: loss 1.000, 3 % of the schedule, 10 min left, 4.00 crops/s, data wait 10 %, "
        "tokens 1728/172/17/1, memory 2.5 GB"
    )


def test_the_loss_is_a_running_mean_of_what_is_finite() -> None:
    watcher = plain()
    for number, loss in enumerate([9.0] * 5 + [2.0] * 25 + [math.nan] * 5 + [4.0] * 20):
        watcher.on_step(step(number + 1, loss=loss))
    assert watcher.progress()[0] == f"loss {(25 * 2 + 20 * 4) / 45:.3f}"
    only_bad = plain()
    only_bad.on_step(step(1, loss=math.nan, skipped=1))
    assert only_bad.progress()[0] == "loss not finite"
    assert only_bad.load()[-1] == "skipped steps 1"


def test_speed_and_waiting_are_weighed_by_time() -> None:
    watcher = plain()
    watcher.on_step(step(1, seconds=9.0, crops_per_second=1.0, data_wait=0.5))
    watcher.on_step(step(2, seconds=1.0, crops_per_second=11.0, data_wait=0.0))
    assert watcher.load()[:2] == ["2.00 crops/s", "data wait 45 %"]


def test_what_is_unknown_is_left_out() -> None:
    watcher = plain()
    watcher.on_step(step(1, tokens=(), memory_bytes=0))
    assert watcher.progress() == ["loss 1.000", "0 % of the schedule"]
    assert watcher.load() == ["4.00 crops/s", "data wait 10 %"]


def test_time_left_follows_the_schedule_from_where_this_process_began() -> None:
    first = step(1, share_done=0.5, minutes=600.0)
    assert minutes_left(first, first) is None
    assert minutes_left(first, step(2, share_done=0.6, minutes=610.0)) == pytest.approx(40)
    assert minutes_left(first, step(3, share_done=1.0, minutes=700.0)) == 0


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0.4, "under 1 min"), (1.2, "1 min"), (59.4, "59 min"), (59.6, "1 h 00 min"), (185, "3 h 05 min"),
        (52 * 60 + 1, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations(minutes: float, text: str) -> None:
    assert duration(minutes) == text


def test_validation_shows_this_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = plain()
    watcher.on_step(step(1))
    watcher.on_validation(200, {"liver": 0.9, "tumor": math.nan}, 0.9, 0.9, 200)
    watcher.on_validation(400, {"liver": 0.8, "tumor": 0.25}, 0.525, 0.9, 200)
    assert capsys.readouterr().err.splitlines() == [
        "step 200: validation Dice 0.900, the best so far (liver 0.90, tumor -)",
        "step 400: validation Dice 0.525, best 0.900 at step 200 (liver 0.80, tumor 0.25)",
    ]
    assert watcher.progress()[1] == "Dice 0.525 (best 0.900 at step 200)"


def test_of_many_outputs_the_lowest_are_shown() -> None:
    dice = {f"organ {number}": number / 100 for number in range(104)} | {"organ 0": math.nan}
    text = each(dice)
    assert text.startswith("lowest: organ 1 0.01, organ 2 0.02,")
    assert text.endswith("organ 14 0.14")


@pytest.mark.parametrize(("width", "num_lines"), [(80, 4), (120, 2), (240, 1)])
def test_in_a_terminal_the_bar_shows_it_all_whatever_the_width(width: int, num_lines: int) -> None:
    bar = make_bar(terminal=True, width=width)
    watcher = Watcher(bar, Clock())
    watcher.on_read("case [1]")
    watcher.begin(90, 1000)
    assert len(bar.tasks) == 1
    watcher.on_step(step(1))
    watcher.on_validation(1, {"liver": 0.5}, 0.5, 0.5, 1)
    watcher.on_step(step(500, max_steps=2000))
    (task,) = bar.tasks
    assert (task.completed, task.total) == (500, 2000)
    screen = Console(file=io.StringIO(), width=width, color_system=None)
    screen.print(bar.get_renderable())
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert shown.count("\n") == num_lines
    assert "500/2000" in shown
    for part in [*watcher.progress(), *watcher.load()]:
        assert part in shown
    assert "5 min left" in shown
    assert "step 1: validation Dice 0.500" in bar.console.file.getvalue()  # type: ignore[attr-defined]


def test_parts_are_joined_into_lines() -> None:
    assert lines(["aaa", "bb", "c", "dddddddd", "e"], 7) == ["aaa, bb", "c", "dddddddd", "e"]
    assert lines(["a"], 0) == ["a"]


def test_the_cache_is_announced_where_something_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = plain()
    watcher.on_size(5_000_000, 0, Path("cases"))
    watcher.on_size(5_000_000, 3, Path("cases"))
    assert capsys.readouterr().err == "cache: 3 cases, at most 5 MB, in cases\n"


def test_memory_of_this_process() -> None:
    assert 10e6 < memory_in_use("cpu") < 1e12
