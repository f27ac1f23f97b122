"""Loopback only, a fixed list of files, no foreign host name (rows V1-V3)."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparseg.errors import ResourceError
from sparseg.viewer.report_page import write_report_page
from sparseg.viewer.serve import ReportServer, served_files
from viewer.report_folder import FAILED, write_case, write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "out"
    write_run(folder, [write_case(folder, "Müller #1"), write_case(folder, "b"), FAILED])
    write_report_page(folder, max_bytes=1000)
    (folder / "secret.nii.gz").write_bytes(b"not in the report")
    (folder.parent / "outside.html").write_text("outside")
    return folder


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[ReportServer]:
    with ReportServer(served_files(out)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ReportServer, path: str, method: str = "GET", *, hosts: tuple[str, ...] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for host in (f"127.0.0.1:{server.server_port}",) if hosts is None else hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, body


def test_it_listens_on_loopback_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    ("address", "file", "kind"),
    [
        ("/", "report.html", "text/html; charset=utf-8"),
        ("/report.html", "report.html", "text/html; charset=utf-8"),
        ("/b.nii.gz", "b.nii.gz", "application/gzip"),
        ("/report/b.js", "report/b.js", "text/javascript; charset=utf-8"),
        ("/report/b/labels-axial.png", "report/b/labels-axial.png", "image/png"),
        ("/M%C3%BCller%20%231.nii.gz", "Müller #1.nii.gz", "application/gzip"),
        ("/report/M%C3%BCller%20%231.js", "report/Müller #1.js", "text/javascript; charset=utf-8"),
    ],
)
def test_files_of_the_report_are_served(server, out, address, file, kind):
    status, headers, body = ask(server, address)
    assert (status, headers["content-type"], body) == (200, kind, (out / file).read_bytes())
    assert ask(server, address, "HEAD")[::2] == (200, b"")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert "Python" not in headers["server"]


ESCAPES = [
    "/secret.nii.gz",
    "/report.json",
    "/report",
    "/report/",
    "/report/b",
    "/report/b/",
    "/report/b/image.nii.gz",
    "/../outside.html",
    "/%2e%2e/outside.html",
    "/%2e%2e%2foutside.html",
    "/..%2foutside.html",
    "/..%5coutside.html",
    "/..\\outside.html",
    "/report/../../outside.html",
    "/report/b/../../../outside.html",
    "/report/%2e%2e/%2e%2e/outside.html",
    "/./report.html",
    "/report.html/",
    "/report.html%00",
    "/report.html%00.png",
    "/report.html;x",
    "/%252e%252e/outside.html",
    "/%c0%ae%c0%ae/outside.html",
    "/etc/passwd",
    "//etc/passwd",
    "/%2fetc%2fpasswd",
    "/file:///etc/passwd",
    "file:///etc/passwd",
    "report.html",
    "/broken.nii.gz",
    "/REPORT.HTML",
]


@pytest.mark.parametrize("address", ESCAPES)
def test_nothing_else_is_served(server, address):
    status, _, body = ask(server, address)
    assert status in (400, 404)
    assert b"outside" not in body
    assert b"root:" not in body


@pytest.mark.parametrize(
    "hosts",
    [
        ("evil.example",),
        ("evil.example:{port}",),
        ("127.0.0.1",),
        ("127.0.0.1:1",),
        ("127.0.0.1.evil.example:{port}",),
        ("",),
        (),
        ("127.0.0.1:{port}", "evil.example"),
        ("evil.example", "127.0.0.1:{port}"),
    ],
)
def test_a_foreign_host_name_is_refused(server, hosts):
    """A name that an attacker lets point at 127.0.0.1 is still that name in the Host header."""
    hosts = tuple(host.format(port=server.server_port) for host in hosts)
    status, _, body = ask(server, "/", hosts=hosts)
    assert (status, body) == (403, b"")


def test_localhost_is_a_name_of_this_machine(server):
    assert ask(server, "/", hosts=(f"localhost:{server.server_port}",))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(server, method):
    status, headers, _ = ask(server, "/", method)
    assert status == 501
    assert "access-control-allow-origin" not in headers


def test_what_is_no_request_ends(server):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in connection.makefile("rb").read()
    assert ask(server, "/")[0] == 200


def test_a_file_that_is_gone_is_not_found(server, out):
    picture = out / "report/b/tokens-axial.png"
    content = picture.read_bytes()
    picture.unlink()
    assert ask(server, "/report/b/tokens-axial.png")[0] == 404
    picture.write_bytes(content)
    assert ask(server, "/report/b/tokens-axial.png")[0] == 200


def test_links_that_lead_out_are_not_listed(tmp_path):
    out = tmp_path / "out"
    row = write_case(out)
    (out / "patient.nii.gz").unlink()
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"x")
    (out / "patient.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    write_run(out, [row, row | {"output": "../elsewhere.nii.gz"}, row | {"output": "report.json"}])
    write_report_page(out)
    assert sorted(served_files(out)) == ["/", "/report.html"]


def test_a_port_in_use_is_named(server):
    for port in (server.server_port, -1, 70000):
        with pytest.raises(ResourceError, match=str(port)) as error:
            ReportServer({}, port)
        assert error.value.code == "port"
