"""Socket activation (sd_listen_fds(3)): sockets that systemd opened for us, so that we never need a privilege.

All workers share them. They are matched to listeners by address, not by name: the configuration alone says what a
port is for.
"""

import os
import socket

_FIRST_FD = 3


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets that were handed to this process; the environment that told of them is cleaned."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    taken = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]
    for one in taken:
        one.setblocking(False)
        one.set_inheritable(False)
    return taken


def take_matching(host: str, port: int, sockets: list[socket.socket]) -> socket.socket | None:
    """Takes the socket for an address out of `sockets`; one on `::` that also takes IPv4 serves 0.0.0.0 as well."""
    both = _dual_stack(port, sockets) if host in {"0.0.0.0", "::"} else None  # noqa: S104 - compared, not bound
    for one in sockets:
        if one.family != socket.AF_UNIX and one.getsockname()[:2] == (host, port) and one is not both:
            sockets.remove(one)
            return one
    return both


def take_unix(path: str, sockets: list[socket.socket]) -> socket.socket | None:
    """Takes the local socket at `path` out of `sockets`."""
    for one in sockets:
        if one.family == socket.AF_UNIX and one.getsockname() == path:
            sockets.remove(one)
            return one
    return None


def _dual_stack(port: int, sockets: list[socket.socket]) -> socket.socket | None:
    """Stays among `sockets`, since listeners on 0.0.0.0 and on :: may share it."""
    for one in sockets:
        if (
            one.family == socket.AF_INET6
            and one.getsockname()[:2] == ("::", port)
            and not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        ):
            return one
    return None
