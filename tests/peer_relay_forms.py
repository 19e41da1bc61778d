"""What a real server under the relay test is: its configuration, where it listens, and whether that form is open."""

from pathlib import Path
from typing import NamedTuple

from peer_servers import NextHop

LOCAL_DOMAIN = "ours.test"
"""The domain that every form takes mail for. What arrives there lies in the server's own `mail` directory."""


class Form(NamedTuple):
    """One configuration of a server, and the truth about it.

    `text` has the placeholders {directory} {address} {port} {third_address} {third_port}; all that the server relays goes to
    the last two. `says` is what makes it open or keeps it closed.
    """

    name: str
    is_open: bool
    says: str
    text: str


class RelayPeer(NextHop):
    """A real server that may relay; `arrived` is what it kept for its own domain."""

    def __init__(self, directory: Path, address: str, port: int, configuration: Path) -> None:
        super().__init__(directory, address, port)
        self.configuration = configuration
