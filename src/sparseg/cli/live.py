"""The live line of a training run: a bar in a terminal, one plain line every 30 s elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from sparseg.training.monitor import StepInfo

PLAIN_SECONDS = 30
_MEAN_OF = 50
_MOST_NAMES = 14
# Places that bar and step count take beside the text, and what the text needs at least.
_BAR_WIDTH, _NARROWEST = 30, 48


class Watcher:
    """Shows how a run comes along; see `sparseg.training.monitor.Monitor`.

    Args:
        bar: From `progress_bar`.
        clock: Seconds that only ever grow.
        muted: Whether another process speaks for this one.
    """

    def __init__(
        self, bar: Progress, clock: Callable[[], float] = time.monotonic, *, muted: bool = False
    ) -> None:
        self.bar, self.clock, self.muted = bar, clock, muted
        self.plain = bar.disable
        self.reading: TaskID | None = None
        self.training: TaskID | None = None
        self.limit = ""
        self.dice = ""
        self.first: StepInfo | None = None
        self.recent: deque[StepInfo] = deque(maxlen=_MEAN_OF)
        self.last_line = clock()

    def on_read(self, name: str) -> None:
        """Show which case was read."""
        if self.reading is None:
            self.reading = self.bar.add_task("reading", total=None)
        self.bar.update(self.reading, advance=1, description=f"reading {name}")

    def begin(self, max_minutes: float | None, max_steps: int) -> None:
        """Show the bar."""
        from rich.progress import TimeRemainingColumn

        if self.reading is not None:
            self.bar.remove_task(self.reading)
            self.reading = None
        # It counts steps, but a time limit may end the schedule earlier; the text says what is left.
        self.bar.columns = tuple(c for c in self.bar.columns if not isinstance(c, TimeRemainingColumn))
        self.training = self.bar.add_task("training", total=max_steps)
        self.limit = f", at most {max_minutes:g} min" if max_minutes else ""

    def on_size(self, num_bytes: int, num_cases: int, folder: Path) -> None:
        """Announce what the cache will take, before it is written."""
        if num_cases:
            self.say(f"cache: {num_cases} cases, at most {num_bytes / 1e6:.0f} MB, in {folder}")

    def on_prepared(self, name: str) -> None:
        """Say which case was prepared."""
        self.say(f"preparing {name}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.muted:
            return
        if self.plain:
            sys.stderr.write(f"{text}\n")
        else:
            self.bar.console.print(text)

    def on_step(self, info: StepInfo) -> None:
        """Move the bar."""
        self.first = self.first or info
        self.recent.append(info)
        if not self.plain and self.training is not None:
            room = max(_NARROWEST, self.bar.console.width - _BAR_WIDTH)
            text = "\n".join(lines([*self.progress(), *self.load()], room))
            self.bar.update(self.training, completed=info.step, total=info.max_steps, description=text)
        elif self.clock() - self.last_line >= PLAIN_SECONDS:
            self.last_line = self.clock()
            self.say(f"step {info.step} of {info.max_steps}: {', '.join([*self.progress(), *self.load()])}")

    def on_validation(
        self, step: int, dice: Mapping[str, float], mean: float, best: float, best_step: int
    ) -> None:
        """Print the validation Dice."""
        self.dice = f"Dice {mean:.3f} (best {best:.3f} at step {best_step})"
        record = "the best so far" if step == best_step else f"best {best:.3f} at step {best_step}"
        self.say(f"step {step}: validation Dice {mean:.3f}, {record} ({each(dice)})")

    def progress(self) -> list[str]:
        """How good it is and how far: loss, Dice, share of the schedule, time left."""
        info = self.recent[-1]
        losses = [one.loss for one in self.recent if math.isfinite(one.loss)]
        loss = f"loss {sum(losses) / len(losses):.3f}" if losses else "loss not finite"
        left = minutes_left(self.first or info, info)
        parts = [loss, self.dice, f"{100 * info.share_done:.0f} % of the schedule{self.limit}"]
        parts += ["" if left is None else f"{duration(left)} left"]
        return [part for part in parts if part]

    def load(self) -> list[str]:
        """What it takes: speed, share of waiting for data, tokens per stage, memory, skipped steps."""
        info = self.recent[-1]
        seconds = max(sum(one.seconds for one in self.recent), 1e-9)
        crops = sum(one.crops_per_second * one.seconds for one in self.recent)
        waited = sum(one.data_wait * one.seconds for one in self.recent)
        parts = [f"{crops / seconds:.2f} crops/s", f"data wait {100 * waited / seconds:.0f} %"]
        if info.tokens:
            parts.append(f"tokens {'/'.join(map(str, info.tokens))}")
        if info.memory_bytes:
            parts.append(f"memory {info.memory_bytes / 1e9:.1f} GB")
        if info.skipped:
            parts.append(f"skipped steps {info.skipped}")
        return parts


def lines(parts: Sequence[str], room: int) -> list[str]:
    """Join by commas into lines of at most `room` characters, where a single part allows it."""
    result = [parts[0]]
    for part in parts[1:]:
        longer = f"{result[-1]}, {part}"
        if len(longer) <= room:
            result[-1] = longer
        else:
            result.append(part)
    return result


def minutes_left(first: StepInfo, now: StepInfo) -> float | None:
    """Minutes to the end of the schedule at the speed since `first`; None before that can be told."""
    share, minutes = now.share_done - first.share_done, now.minutes - first.minutes
    return minutes / share * (1 - now.share_done) if share > 0 and minutes > 0 else None


def duration(minutes: float) -> str:
    """E.g. `under 1 min`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if minutes < 1:
        return "under 1 min"
    hours, rest = divmod(round(minutes), 60)
    if not hours:
        return f"{rest} min"
    return f"{hours} h {rest:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def each(dice: Mapping[str, float]) -> str:
    """The Dice of each output, or only of the lowest where there are many; `-` where undefined."""
    known = {name: value for name, value in dice.items() if not math.isnan(value)}
    if len(dice) > _MOST_NAMES:
        lowest = sorted(known, key=lambda name: known[name])[:_MOST_NAMES]
        return "lowest: " + ", ".join(f"{name} {known[name]:.2f}" for name in lowest)
    return ", ".join(f"{name} {known[name]:.2f}" if name in known else f"{name} -" for name in dice)
