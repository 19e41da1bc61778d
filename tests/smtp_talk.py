"""Drives a ServerConnection in memory, with an answer for each event that needs one."""

from collections.abc import Callable, Iterable

from posthouse.smtp.event import ContentPiece, ContentWanted, Credentials, Event, TlsWanted
from posthouse.smtp.reply import CONTENT_WELCOME, Reply, reply
from posthouse.smtp.server import CLOSED, NEED_DATA, PAUSED, ServerConnection, ServerSettings

SETTINGS = ServerSettings(
    hostname="mx.example.org", size_limit=1_000_000, auth_mechanisms=("PLAIN", "LOGIN"), auth_in_clear_allowed=True
)


def agree(event: Event) -> Reply:
    """Yes to everything."""
    if isinstance(event, ContentWanted):
        return CONTENT_WELCOME
    if isinstance(event, Credentials):
        return reply(235, "2.7.0", "Welcome")
    return reply(250, "2.0.0", "OK")


class Talk:
    """A session under way: what was said, and what was learned."""

    def __init__(
        self, settings: ServerSettings = SETTINGS, answer: Callable[[Event], Reply] = agree, greet: bool = True
    ):
        self.engine = ServerConnection(settings)
        self.answer = answer
        self.events: list[Event] = []
        self.is_closed = False
        self.is_waiting_for_tls = False
        self.sent = b""
        if greet:
            self.engine.greet()
            self.greeting = self.engine.data_to_send()

    def say(self, *octets: bytes) -> str:
        """Gives the octets, piece by piece; the engine's answers to them."""
        sent = b""
        for piece in octets:
            self.engine.receive_data(piece)
            self._run()
            sent += self.engine.data_to_send()
        self.sent += sent
        return sent.decode()

    def end_of_file(self) -> str:
        self.engine.receive_eof()
        self._run()
        sent = self.engine.data_to_send()
        self.sent += sent
        return sent.decode()

    def _run(self) -> None:
        while True:
            event = self.engine.next_event()
            if event is NEED_DATA:
                return
            if event is PAUSED:
                return
            if event is CLOSED:
                self.is_closed = True
                return
            self.events.append(event)
            if event.needs_reply:
                self.engine.reply(self.answer(event))

    def codes(self, *octets: bytes) -> list[int]:
        """The codes of the replies to what is said."""
        return [int(line[:3]) for line in self.say(*octets).splitlines() if line[3:4] == " "]

    @property
    def content(self) -> bytes:
        """All pieces of content, joined."""
        return b"".join(event.data for event in self.events if isinstance(event, ContentPiece))

    def of(self, kind: type[Event]) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if type(event) is kind]


def lines(*texts: str | bytes) -> bytes:
    """Command lines."""
    return b"".join((text.encode() if isinstance(text, str) else text) + b"\r\n" for text in texts)


def joined(events: Iterable[Event]) -> list[Event]:
    """Events with adjacent pieces of content joined: what no split of the octets may change. Pieces of content that broke are
    left out."""
    from posthouse.smtp.event import ContentBroken

    result: list[Event] = []
    for event in events:
        if isinstance(event, ContentBroken):
            while result and isinstance(result[-1], ContentPiece):
                result.pop()
        if result and isinstance(event, ContentPiece) and isinstance(result[-1], ContentPiece):
            result[-1] = ContentPiece(result[-1].data + event.data)
        else:
            result.append(event)
    return result


__all__ = ["SETTINGS", "Talk", "TlsWanted", "agree", "joined", "lines"]
