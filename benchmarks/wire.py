"""A connection of our own two ends, in clear or under TLS, as cheap as Python has it: the kernel's socket, driven by readiness.

OpenSSL reads and writes the descriptor by itself, so that no octet is copied through a memory BIO: the ends shall take as
little as they can of the machine that they share with the server between them.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

_OCTETS = 65536


class Wire:
    """One connection. `received` gets what comes; `lost` is called once, when the other side or we have ended it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        received: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._received = received
        self._lost = lost
        self._waiting = b""
        self._is_open = True
        loop.add_reader(sock.fileno(), self._read)

    def send(self, data: bytes) -> None:
        """Writes at once what the kernel takes, and the rest when it takes more."""
        if self._waiting:
            self._waiting += data
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._waiting = data[sent:]
            self._loop.add_writer(self._socket.fileno(), self._write)

    def start_tls(self, context: ssl.SSLContext, server_side: bool, done: Callable[[], None]) -> None:
        """Begins the handshake; `done` is called when it is over."""
        self._loop.remove_reader(self._socket.fileno())
        layer = context.wrap_socket(self._socket, server_side=server_side, do_handshake_on_connect=False)
        self._socket = layer

        def step() -> None:
            try:
                layer.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                self.close()
                return
            self._loop.remove_reader(layer.fileno())
            self._loop.add_reader(layer.fileno(), self._read)
            done()

        self._loop.add_reader(layer.fileno(), step)
        step()

    def close(self) -> None:
        """Ends it, without ceremony."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._lost()

    def _read(self) -> None:
        # OpenSSL takes one record at a time from the kernel; the loop calls again for those that are still there.
        try:
            data = self._socket.recv(_OCTETS)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self.close()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, b""
        self._loop.remove_writer(self._socket.fileno())
        self.send(waiting)
