"""The report over loopback, for `sparseg view`: a fixed list of files, to this machine only.

Over loopback the page can read label files at full resolution, which a page opened from a disk may not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sparseg.errors import ResourceError
from sparseg.viewer.report_data import PAGE, CaseRow, inside, read_report
from sparseg.viewer.report_volumes import FOLDER, PICTURES

HOST = "127.0.0.1"
# A browser that only connects must not hold a thread for ever.
_TIMEOUT_S = 20
_CHUNK = 2**20
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".gz": "application/gzip",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The page states its own, stricter one; this one holds for everything else.
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def served_files(out: Path) -> dict[str, Path]:
    """Path of an address -> file, of everything that the page of an output folder may ask for.

    Raises:
        InputError: no report, or not one of `sparseg predict`.
    """
    report, _ = read_report(out)
    names = {PAGE, *(name for row in report.cases if row.is_ok for name in _names(row))}
    found = {f"/{name}": inside(out, name) for name in names if Path(name).suffix in _KINDS}
    files = {address: path for address, path in found.items() if path is not None}
    return files | ({"/": files[f"/{PAGE}"]} if f"/{PAGE}" in files else {})


def _names(row: CaseRow) -> list[str]:
    return [row.output, f"{FOLDER}/{row.case}.js", *(f"{FOLDER}/{row.case}/{name}" for name in PICTURES)]


class ReportServer(ThreadingHTTPServer):
    """Serves files on 127.0.0.1.

    Args:
        files: Path of an address -> file.
        port: 0 takes any free one.

    Raises:
        ResourceError: the port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, files: Mapping[str, Path], port: int = 0) -> None:
        self.files = dict(files)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ResourceError(
                "the port must be free and allowed",
                received=f"{port}: {getattr(error, 'strerror', None) or type(error).__name__}",
                remedy="give another --port, or none for any free one",
                code="port",
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Browsers hang up in the middle of a file; that is no fault of the server's."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "sparseg", ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # A foreign page can make a name of its own point here; the browser then sends that name.
        allowed = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get_all("Host", []) not in ([host] for host in allowed):
            self._refuse(403)
            return
        path = self.server.files.get(unquote(urlsplit(self.path).path))
        if path is None:
            self._refuse(404)
            return
        self._send(path, with_body=with_body)

    def _send(self, path: Path, *, with_body: bool) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self._refuse(404)
            return
        with file:
            self.send_response(200)
            self.send_header("Content-Type", _KINDS[path.suffix])
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            while with_body and (chunk := file.read(_CHUNK)):
                self.wfile.write(chunk)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: addresses hold case names."""
