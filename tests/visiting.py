"""A Posthouse with [web] for the tests, and its visitors: each calls from an address of his own."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from peer_programs import free_port, loopback_address
from posthouse.web.document import RelayTest
from posthouse_server import ADDRESS, Posthouse, configured

SECONDS = 60.0


class Answer:
    """An answer as it came."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.fields = {name.lower(): value for name, value in response.getheaders()}
        self.octets = response.read()

    @property
    def text(self) -> str:
        return self.octets.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.octets)

    @property
    def test(self) -> RelayTest:
        return msgspec.json.decode(self.octets, type=RelayTest)


class Site:
    """Where the web is: `port` of its pages, `call_port` of bare calls; `mail_port` is what is tested of a host."""

    def __init__(self, server: Posthouse, port: int, call_port: int, mail_port: int) -> None:
        self.server, self.port, self.call_port, self.mail_port = server, port, call_port, mail_port

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}"

    def visit(
        self, path: str, method: str = "GET", body: bytes | str | None = None, caller: str = ADDRESS, **fields: str
    ) -> Answer:
        """A request from `caller`, and its whole answer."""
        with contextlib.closing(self.connect(caller)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in fields.items()})
            return Answer(connection.getresponse())

    def connect(self, caller: str = ADDRESS) -> http.client.HTTPConnection:
        """A connection from `caller`."""
        return http.client.HTTPConnection(ADDRESS, self.port, timeout=SECONDS, source_address=(caller, 0))

    def post(self, path: str, document: object, caller: str = ADDRESS, **fields: str) -> Answer:
        """A JSON document, posted."""
        return self.visit(path, "POST", json.dumps(document), caller, content_type="application/json", **fields)

    def call(self, caller: str = ADDRESS) -> str:
        """All that a bare call from `caller` is told."""
        with socket.create_connection((ADDRESS, self.call_port), SECONDS, source_address=(caller, 0)) as connection:
            octets = b""
            while more := connection.recv(65536):
                octets += more
        return octets.decode()


@contextlib.contextmanager
def site(settings: str = "", web: str = "", mail_port: int = 0, listener: str = "") -> Iterator[Site]:
    """A running Posthouse that tests `mail_port` of its visitors. `web` are more lines of [web]."""
    mail_port = mail_port or free_port(ADDRESS)
    port, call_port = free_port(ADDRESS), free_port(ADDRESS)
    text = f"""\
{settings}
[web]
listen = "{ADDRESS}:{port}"
call_listen = "{ADDRESS}:{call_port}"
ports = [{mail_port}]
{web}
"""
    with configured(text, listener=listener) as server, server.serving():
        yield Site(server, port, call_port, mail_port)


Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def host(talk: Talk, port: int, address: str = "") -> Iterator[str]:
    """A host that does with each connection what `talk` does; its address."""
    address = address or loopback_address()
    with socket.create_server((address, port)) as listening:
        listening.settimeout(0.1)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listening.accept()
                    connection.settimeout(SECONDS)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                talk(connection)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield address
        finally:
            over.set()
            accepting.join()


def refusing(banner: str = "220 stub.test ESMTP", heard: list[str] | None = None) -> Talk:
    """A host that refuses every recipient, in the plainest way; `heard` gets its clients' lines."""

    def talk(connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        stream.write(f"{banner}\r\n".encode())
        stream.flush()
        for line in stream:
            if heard is not None:
                heard.append(line.decode("latin-1").rstrip())
            verb = line[:4].upper()
            reply = {
                b"EHLO": "250 stub.test",
                b"HELO": "250 stub.test",
                b"MAIL": "250 ok",
                b"RSET": "250 ok",
                b"QUIT": "221 bye",
            }.get(verb, "550 5.7.1 Relaying denied")
            stream.write(f"{reply}\r\n".encode())
            stream.flush()
            if verb == b"QUIT":
                return

    return talk


def silent(over: threading.Event) -> Talk:
    """A host that says nothing until `over`: a test of it stays under way."""

    def talk(connection: socket.socket) -> None:
        over.wait(SECONDS)

    return talk
