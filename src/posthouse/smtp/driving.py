"""What the server engine tells its driver beside events: why there is none, what to wait for, how to end."""

import enum


class LocalProtocolError(Exception):
    """The caller asked for what the protocol does not allow now; a fault of ours."""


class Signal(enum.Enum):
    """What `next_event` says when there is no event."""

    NEED_DATA = "need-data"
    """Write what is to be sent, then read."""
    PAUSED = "paused"
    """A reply is owed, or the TLS handshake, or our greeting."""
    CLOSED = "closed"
    """Write what is to be sent, then end the connection as `ending` says."""


NEED_DATA, PAUSED, CLOSED = Signal.NEED_DATA, Signal.PAUSED, Signal.CLOSED


class Ending(enum.Enum):
    """How the connection ends when the last reply is out."""

    NOT_YET = "not-yet"
    CLOSE = "close"
    DRAIN = "drain"
    """Shut the sending side, read on for a little while, then close: octets may be under way that we did not ask for."""


class Timeout(enum.Enum):
    """Which wait of RFC 5321 4.5.3.2 it is now."""

    NONE = "none"
    """It is not the client we wait for."""
    COMMAND = "command"
    CONTENT = "content"
    HANDSHAKE = "handshake"
