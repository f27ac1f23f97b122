"""`sparseg view`: what it prints, opens and refuses; the page is never an old one."""

from __future__ import annotations

import os
import urllib.request
import webbrowser
from pathlib import Path

import pytest

from sparseg.cli.main import run
from sparseg.viewer.report_page import write_report_page
from sparseg.viewer.serve import ReportServer
from viewer.report_folder import FAILED, write_case, write_run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_run(tmp_path / "out", [write_case(tmp_path / "out"), FAILED])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was sent to; the server is left as by Ctrl-C once it serves."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)

    def interrupted(self: ReportServer, poll_interval: float) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportServer, "serve_forever", interrupted)
    return addresses


def test_it_writes_a_missing_page_opens_it_and_ends_with_0(out, opened, capsys):
    assert run(["view", str(out)]) == 0
    said = capsys.readouterr()
    assert len(opened) == 1
    assert opened[0].startswith("http://127.0.0.1:")
    assert said.out.startswith(f"{opened[0]} shows {out}; Ctrl-C ends\n")
    assert said.err == ""
    assert "1 of 2 cases done" in (out / "report.html").read_text()


def test_no_browser(out, opened):
    assert run(["view", str(out), "--no-browser"]) == 0
    assert opened == []


def test_a_page_older_than_the_report_is_written_anew(out, opened):
    page = write_report_page(out)
    page.write_text("kept")
    os.utime(out / "report.json", ns=(1, 1))
    assert run(["view", str(out)]) == 0
    assert page.read_text() == "kept"
    after = page.stat().st_mtime_ns + 10**9
    os.utime(out / "report.json", ns=(after, after))
    assert run(["view", str(out)]) == 0
    assert page.read_text() != "kept"
    assert len(opened) == 2


def test_a_folder_without_a_report_is_bad_input(tmp_path, opened, capsys):
    assert run(["view", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: the folder must hold the report")
    assert run(["view", str(tmp_path / "none")]) == 2
    assert opened == []


def test_a_port_in_use_fails(out, opened, capsys):
    with ReportServer({}) as other:
        assert run(["view", str(out), "--port", str(other.server_port)]) == 1
    assert "give another --port" in capsys.readouterr().err
    assert opened == []


def test_the_port_is_that_asked_for(out, monkeypatch):
    with ReportServer({}) as free:
        port = free.server_port
    asked: list[bytes] = []

    def serve_once(self: ReportServer, poll_interval: float) -> None:  # noqa: ARG001
        import threading

        client = threading.Thread(
            target=lambda: asked.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/").read())
        )
        client.start()
        self.handle_request()
        client.join()

    monkeypatch.setattr(ReportServer, "serve_forever", serve_once)
    assert run(["view", str(out), "--port", str(port), "--no-browser"]) == 0
    assert asked == [(out / "report.html").read_bytes()]
