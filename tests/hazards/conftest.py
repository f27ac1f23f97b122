"""Hands the figures of the hazard tests to `make hazards`; how a test says one is in figures.py."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from . import figures

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hazard(row, what): each case of the test is one trial of a figure")


@pytest.fixture
def figure() -> figures.Figure:
    """Record a figure: `figure(row, what, bad, of=trials)` or `figure(row, what, value, limit=most)`."""
    return figures.record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A failed set-up or a skip has no call phase; a failed tear-down comes after one that passed.
    if HERE in item.path.parents and (report.when == "call" or not report.passed):
        figures.record_test(item.nodeid, report.outcome)
        if not report.skipped:
            for mark in item.iter_markers("hazard"):
                figures.record_count(*mark.args, bad=int(report.failed), of=1)
    return report
