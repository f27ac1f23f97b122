"""The figures of the hazard table: one JSON line each, in the file that SPARSEG_HAZARD_FIGURES names.

A test says them in one of two ways; nothing is written where the variable is not set.

    @pytest.mark.hazard("N1", "silent accepts")  # each case of this test is one trial, a failed one is bad
    @pytest.mark.parametrize(...)
    def test_n01_forms_disagree(...): ...

    def test_p2_killed_while_writing(figure):
        ...
        figure("P2", "incomplete files at a final name", bad, of=kills)  # wanted 0; several are summed
        figure("P5", "measured / predicted peak", ratio, limit=1.2)  # at most; the worst is shown

Say the figure before the assertion that it must pass, so that the table shows what was found. A test belongs
to the rows in its name (`test_n01_...`, `test_t1_t2_...`): if it fails, so do they. `make hazards` prints the
table; see scripts/hazards.py for the rows and how many trials each wants.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "SPARSEG_HAZARD_FIGURES"
ROUNDS_VARIABLE = "SPARSEG_HAZARD_ROUNDS"

Figure = Callable[..., None]


def rounds(usual: int) -> int:
    """How often a test that is repeated at random runs: `usual` times unless the variable says otherwise."""
    return int(os.environ.get(ROUNDS_VARIABLE, usual))


def rows_of(name: str) -> list[str]:
    """Row ids in a test's name or node id: `test_t1_t2_killed` -> T1, T2.

    Ids stand at the beginning of the name, so a word like `a2` later on is none.
    """
    function = name.split("::")[-1].split("[")[0]
    found = []
    for part in function.removeprefix("test_").split("_"):
        match = re.fullmatch(r"([nldatpx])0?(\d{1,2})", part, re.IGNORECASE)
        if match is None:
            break
        found.append(f"{match[1].upper()}{match[2]}")
    return found


def record_count(row: str, what: str, bad: int, of: int) -> None:
    """Record that `bad` of `of` trials went wrong."""
    _write({"row": row, "what": what, "bad": int(bad), "of": int(of)})


def record_value(row: str, what: str, value: float, limit: float, unit: str = "") -> None:
    """Record a measured value that must not be above `limit`."""
    _write({"row": row, "what": what, "value": float(value), "limit": float(limit), "unit": unit})


def record_test(name: str, outcome: str) -> None:
    """Record how a test ended: passed, failed or skipped."""
    _write({"test": name, "rows": rows_of(name), "outcome": outcome})


def record(
    row: str, what: str, value: float, *, of: int | None = None, limit: float | None = None, unit: str = ""
) -> None:
    """The `figure` fixture: a count with `of`, or a measured value with `limit`."""
    if (of is None) == (limit is None):
        raise TypeError("a figure has either `of` (trials) or `limit` (largest value allowed)")
    if of is not None:
        record_count(row, what, int(value), of)
    elif limit is not None:
        record_value(row, what, value, limit, unit)


def _write(content: dict[str, Any]) -> None:
    target = os.environ.get(VARIABLE)
    if target:
        with Path(target).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content) + "\n")
