"""Listening sockets: what is in use is found out, what can't be is said plainly."""

import os
import socket
from pathlib import Path

import pytest

from posthouse.net.listen import ListenError, listen, listen_unix, unix_address


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def test_several_sockets_share_one_free_port() -> None:
    sockets = listen("127.0.0.1", 0, 3)
    try:
        assert len({one.getsockname() for one in sockets}) == 1
    finally:
        _close(sockets)


def test_port_in_use_by_our_own_kind_is_found_although_it_could_be_shared() -> None:
    sockets = listen("127.0.0.1", 0)
    try:
        port = sockets[0].getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port} is in use by another program"):
            listen("127.0.0.1", port, 2)
    finally:
        _close(sockets)


def test_ipv6_socket_takes_no_ipv4() -> None:
    sockets = listen("::1", 0)
    try:
        assert sockets[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    finally:
        _close(sockets)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.77", "no address 192.0.2.77"),
        ("mx.example.org", "not an IP address"),
        ("::ffff:0:1:2:3", "no address"),
    ],
)
def test_what_cannot_be_listened_on_is_one_sentence(host: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        listen(host, 2525)


def test_port_without_privilege_names_the_three_ways() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
            if start <= 25:
                status = 77
            else:
                listen("127.0.0.1", 25)
        except ListenError as error:
            status = 0 if "posthouse.socket" in str(error) and "user" in str(error) else 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 77:
        pytest.skip("port 25 needs no privilege on this machine")
    assert status == 0


def test_local_socket_replaces_a_dead_one_and_has_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path, 0o600).close()
    with listen_unix(path, 0o666):
        assert path.stat().st_mode & 0o777 == 0o666


def test_local_socket_works_at_a_path_longer_than_its_address_may_be(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    with (
        listen_unix(directory / "submit.sock", 0o600),
        unix_address(directory / "submit.sock") as address,
        socket.socket(socket.AF_UNIX) as one,
    ):
        one.connect(address)


def test_local_socket_where_none_can_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="can't listen on"):
        listen_unix(tmp_path / "missing" / "s", 0o600)
