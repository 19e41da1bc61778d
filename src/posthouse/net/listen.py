"""Listening sockets: made before any privilege is dropped, one a worker, and named plainly when they can't be.

With SO_REUSEPORT the kernel spreads connections over the workers' sockets, but lets every process of the same uid bind
the same port: a plain bind first tells whether somebody else is there.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BACKLOG = 1024
"""Connections that may wait to be accepted, a socket; the kernel caps it at net.core.somaxconn."""

_LONGEST_UNIX_PATH = 107  # sun_path holds 108 octets, its end included


class ListenError(Exception):
    """The address can't be listened on; the text is one sentence with the address and the remedy."""


def address_text(host: str, port: int) -> str:
    """`192.0.2.1:25` or `[2001:db8::1]:25`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """`count` sockets that listen on one address and share its connections; port 0 takes a free one. ListenError."""
    family, address = _resolve(host, port)
    opened: list[socket.socket] = []
    try:
        if port:
            _probe(family, address)
        for _ in range(count):
            one = _new_socket(family)
            opened.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
            address = one.getsockname()  # after port 0: the others share the port that was found
        for one in opened:
            one.listen(BACKLOG)
    except OSError as error:
        for one in opened:
            one.close()
        raise ListenError(_sentence(host, port, error)) from error
    return opened


def listen_unix(path: Path, mode: int) -> socket.socket:
    """A local socket at `path` with these permissions; a socket left there by a dead server is replaced. ListenError."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.setblocking(False)
    try:
        path.unlink(missing_ok=True)
        with unix_address(path) as address:
            one.bind(address)
        path.chmod(mode)
        one.listen(BACKLOG)
    except OSError as error:
        one.close()
        raise ListenError(
            f"can't listen on {path}: {error.strerror}; is the directory ours and on a local disk?"
        ) from error
    return one


@contextlib.contextmanager
def unix_address(path: Path) -> Iterator[str]:
    """The name to bind or connect a local socket by: a path too long for a socket address goes through its directory."""
    if len(os.fsencode(path)) <= _LONGEST_UNIX_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST)
    except socket.gaierror as error:
        raise ListenError(f"{host!r} is not an IP address to listen on ({error.strerror})") from error
    family, _kind, _protocol, _name, address = found[0]
    return family, address


def _new_socket(family: socket.AddressFamily) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return one


def _probe(family: socket.AddressFamily, address: tuple[Any, ...]) -> None:
    """Fails where SO_REUSEPORT would share the port with a stranger's socket."""
    with _new_socket(family) as one:
        one.bind(address)


def _sentence(host: str, port: int, error: OSError) -> str:
    where = address_text(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program: stop that one (`ss -ltnp` names it), or give the listener another port"
    if error.errno == errno.EACCES:
        return (
            f"{where} is a privileged port: start by systemd's posthouse.socket, or as root with `user` set, "
            "or use a port from 1024 on"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} can't be listened on: this machine has no address {host}; `ip address` shows those it has"
    return f"{where} can't be listened on: {error.strerror}"
