"""`sparseg view`: look at the report of a prediction in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import cyclopts


def view(
    out: Path,
    /,
    *,
    port: int = 0,
    no_browser: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Open the report of a prediction in the browser, with labels at full resolution.

    Serves report.html on 127.0.0.1, to this machine only, until Ctrl-C; the page is written first if it is
    missing or older than report.json. Without this command, open report.html itself.

    Parameters
    ----------
    out
        Output folder of a prediction.
    port
        Port to serve at; 0: any free one.
    no_browser
        Print the address, but open no browser.
    """
    import webbrowser

    from sparseg.viewer.serve import ReportServer, served_files

    _require_page(out)
    with ReportServer(served_files(out), port) as server:
        sys.stdout.write(f"{server.url} shows {out}; Ctrl-C ends\n")
        sys.stdout.flush()
        if not no_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
    return 0


def _require_page(out: Path) -> None:
    from sparseg.viewer.report_data import PAGE, REPORT
    from sparseg.viewer.report_page import write_report_page

    page, report = out / PAGE, out / REPORT
    if not page.is_file() or (report.is_file() and report.stat().st_mtime_ns > page.stat().st_mtime_ns):
        write_report_page(out)
