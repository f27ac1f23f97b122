"""Rules for every test: one thread, no network, Ctrl-C as in a terminal, memory given back."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_configure() -> None:
    import torch

    # At these sizes a second thread only waits, and on a busy machine it waits for minutes.
    torch.set_num_threads(1)
    # A shell lets background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class NetworkBlockedError(AssertionError):
    """A test that is not marked `network` wanted to leave the machine (row X5)."""


def _stays_here(family: int, address: Any) -> bool:
    if family == getattr(socket, "AF_UNIX", None):
        return True
    host = address[0] if isinstance(address, tuple) else address
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _default_allocator() -> Iterator[None]:
    """A test that trains does not change the memory of the process for those that measure it.

    For the session, since fixtures of modules train too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparseg.allocator.keep_freed_memory", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests write no cache into the user's home; they share one, as a user's commands do."""
    if not request.node.get_closest_marker("network"):
        folder = request.config._tmp_path_factory.getbasetemp() / "cache"  # type: ignore[attr-defined]
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("network"):
        return

    def guarded(name: str) -> Any:
        real = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            # The address is the last argument of connect, connect_ex and sendto alike.
            if not _stays_here(self.family, args[-1]):
                raise NetworkBlockedError(f"socket.{name} to {args[-1]!r} in a test without the network mark")
            return real(self, *args)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
