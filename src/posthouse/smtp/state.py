"""The server's states, what may be said in each, and what leads from one to the next (RFC 5321 4.1.4). Nothing else.

```
CONNECTED ──EHLO──► READY ──MAIL──► MAIL ──RCPT──► RCPT ──DATA──► CONTENT ──┐
    ▲                 ▲ │                           └────BDAT──► CHUNK ⇄ CHUNKS │
    └── tls_started ──┼─┴─AUTH──► LOGIN ──► READY                            │
                      └──────── the reply to the content, RSET, EHLO ◄───────┘
```
"""

import enum

from posthouse.smtp.reply import Reply, reply


class Phase(enum.IntEnum):
    """What the server is waiting for."""

    SILENT = 0
    """We have not greeted yet."""
    UNWELCOME = 1
    """We greeted with 554: only QUIT is served (RFC 5321 3.1)."""
    CONNECTED = 2
    READY = 3
    MAIL = 4
    RCPT = 5
    CONTENT = 6
    CHUNK = 7
    """Reading the octets of a BDAT."""
    CHUNKS = 8
    """Between the chunks of a message."""
    LOGIN = 9
    """An AUTH exchange: the next line is a response, not a command."""
    HANDSHAKE = 10
    """STARTTLS was answered; what comes now is for the TLS layer."""


class Cause(enum.IntEnum):
    """What changes the phase."""

    GREETED = 0
    TURNED_AWAY = 1
    HELLO = 2
    MAIL_ACCEPTED = 3
    RCPT_ACCEPTED = 4
    CONTENT_WELCOME = 5
    CHUNK_BEGINS = 6
    CHUNK_READ = 7
    TRANSACTION_OVER = 8
    LOGIN_BEGINS = 9
    LOGIN_OVER = 10
    STARTTLS = 11
    TLS_STARTED = 12


TRANSITIONS: dict[tuple[Phase, Cause], Phase] = {
    (Phase.SILENT, Cause.TLS_STARTED): Phase.SILENT,
    (Phase.SILENT, Cause.GREETED): Phase.CONNECTED,
    (Phase.SILENT, Cause.TURNED_AWAY): Phase.UNWELCOME,
    (Phase.CONNECTED, Cause.HELLO): Phase.READY,
    (Phase.READY, Cause.HELLO): Phase.READY,
    (Phase.MAIL, Cause.HELLO): Phase.READY,
    (Phase.RCPT, Cause.HELLO): Phase.READY,
    (Phase.CHUNKS, Cause.HELLO): Phase.READY,
    (Phase.READY, Cause.MAIL_ACCEPTED): Phase.MAIL,
    (Phase.MAIL, Cause.RCPT_ACCEPTED): Phase.RCPT,
    (Phase.RCPT, Cause.RCPT_ACCEPTED): Phase.RCPT,
    (Phase.RCPT, Cause.CONTENT_WELCOME): Phase.CONTENT,
    (Phase.RCPT, Cause.CHUNK_BEGINS): Phase.CHUNK,
    (Phase.CHUNKS, Cause.CHUNK_BEGINS): Phase.CHUNK,
    (Phase.CHUNK, Cause.CHUNK_READ): Phase.CHUNKS,
    (Phase.CONNECTED, Cause.TRANSACTION_OVER): Phase.CONNECTED,
    (Phase.READY, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.MAIL, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.RCPT, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.CONTENT, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.CHUNK, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.CHUNKS, Cause.TRANSACTION_OVER): Phase.READY,
    (Phase.READY, Cause.LOGIN_BEGINS): Phase.LOGIN,
    (Phase.LOGIN, Cause.LOGIN_OVER): Phase.READY,
    (Phase.READY, Cause.STARTTLS): Phase.HANDSHAKE,
    (Phase.HANDSHAKE, Cause.TLS_STARTED): Phase.CONNECTED,
}
"""Every step there is; one that is not here is a bug of ours."""

HELLO_FIRST = reply(503, "5.5.1", "Say EHLO or HELO first")
LHLO_FIRST = reply(503, "5.5.1", "Say LHLO first")
MAIL_FIRST = reply(503, "5.5.1", "Say MAIL FROM first")
RCPT_FIRST = reply(503, "5.5.1", "Say RCPT TO first")
NO_RECIPIENT = reply(554, "5.5.1", "No recipient was accepted")
MAIL_NESTED = reply(503, "5.5.1", "A transaction is under way; end it or say RSET")
CHUNKS_UNDER_WAY = reply(503, "5.5.1", "A message is coming by BDAT; end it or say RSET")
ONLY_QUIT = reply(503, "5.5.1", "No service here for you; say QUIT")

OUT_OF_ORDER: dict[str, dict[Phase, Reply]] = {
    "MAIL": {
        Phase.CONNECTED: HELLO_FIRST,
        Phase.MAIL: MAIL_NESTED,
        Phase.RCPT: MAIL_NESTED,
        Phase.CHUNKS: CHUNKS_UNDER_WAY,
    },
    "RCPT": {Phase.CONNECTED: HELLO_FIRST, Phase.READY: MAIL_FIRST, Phase.CHUNKS: CHUNKS_UNDER_WAY},
    "DATA": {
        Phase.CONNECTED: HELLO_FIRST,
        Phase.READY: MAIL_FIRST,
        Phase.MAIL: RCPT_FIRST,
        Phase.CHUNKS: CHUNKS_UNDER_WAY,
    },
    "BDAT": {Phase.CONNECTED: HELLO_FIRST, Phase.READY: MAIL_FIRST, Phase.MAIL: RCPT_FIRST},
    "AUTH": {
        Phase.CONNECTED: HELLO_FIRST,
        Phase.MAIL: MAIL_NESTED,
        Phase.RCPT: MAIL_NESTED,
        Phase.CHUNKS: MAIL_NESTED,
    },
    "STARTTLS": {
        Phase.CONNECTED: HELLO_FIRST,
        Phase.MAIL: MAIL_NESTED,
        Phase.RCPT: MAIL_NESTED,
        Phase.CHUNKS: MAIL_NESTED,
    },
}
"""What a command that comes in the wrong phase is told. A command or a phase that is not here is in order."""
