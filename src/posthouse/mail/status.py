"""A next hop's reply to an enhanced status code (RFC 3463, RFC 2034, RFC 5248), with care.

The next hop's own enhanced code is taken when it fits its three-digit code: right form, same class. Otherwise a table by
code and stage answers, and where a bare code can mean several things it says less, not more: a `550` to RCPT without an
enhanced code may be an unknown mailbox or a policy, and a list manager that reads `5.1.1` would drop the subscriber.
So `5.1.0` ("something about the address") is the most it gets, and `x.0.0` says nothing false.
"""

import enum
import re
from typing import Final

from posthouse.smtp.reply import Reply

_FORM: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}\Z")


class Stage(enum.StrEnum):
    """The step of the dialogue that a reply answers. CONTENT: the reply after the final dot or the last BDAT."""

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "hello"
    TLS = "tls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"


_BY_STAGE: Final[dict[tuple[int, Stage], str]] = {
    (220, Stage.GREETING): "2.0.0",
    (250, Stage.MAIL): "2.1.0",
    (250, Stage.RCPT): "2.1.5",
    (251, Stage.RCPT): "2.1.5",
    (450, Stage.RCPT): "4.2.0",  # RFC 5321 4.2.3: mailbox unavailable (busy, or blocked for now)
    (452, Stage.RCPT): "4.5.3",  # RFC 5321 4.5.3.1.10: too many recipients
    (550, Stage.RCPT): "5.1.0",
    (552, Stage.RCPT): "5.2.2",
    (552, Stage.MAIL): "5.3.4",  # RFC 1870 6.1: larger than the server takes
    (552, Stage.DATA): "5.3.4",
    (552, Stage.CONTENT): "5.3.4",
    (553, Stage.MAIL): "5.1.7",
    (553, Stage.RCPT): "5.1.3",
    (554, Stage.CONNECT): "5.3.2",  # RFC 5321 3.1: no SMTP service here
    (554, Stage.GREETING): "5.3.2",
    (554, Stage.DATA): "5.5.1",  # RFC 5321 3.3: no valid recipients
}

_BY_CODE: Final[dict[int, str]] = {
    421: "4.3.2",
    432: "4.7.12",  # RFC 4954 6
    451: "4.3.0",
    452: "4.3.1",
    454: "4.7.0",  # RFC 3207 4, RFC 4954 4.7
    455: "4.5.4",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    504: "5.5.4",
    521: "5.3.2",  # RFC 7504 3
    530: "5.7.0",
    534: "5.7.9",
    535: "5.7.8",
    538: "5.7.11",
    551: "5.1.6",
    552: "5.2.2",
    553: "5.1.0",
    555: "5.5.4",
    556: "5.1.10",  # RFC 7504 4, RFC 7505 4
}


def is_enhanced(text: str) -> bool:
    """The text is an enhanced status code by RFC 3463 2: class 2, 4 or 5, then two numbers of up to three digits."""
    return _FORM.match(text) is not None


def status_of(reply: Reply, stage: Stage) -> str:
    """The enhanced status code for `reply`, always well-formed: the next hop's where it fits, else by code and stage.

    A code outside 2yz, 4yz and 5yz is a fault of protocol, "4.5.0": the next hop may be sane again later.
    """
    code = reply.code
    if reply.enhanced[:1] == str(code // 100) and is_enhanced(reply.enhanced):
        return reply.enhanced
    if (known := _BY_STAGE.get((code, stage)) or _BY_CODE.get(code)) is not None:
        return known
    if code // 100 in (2, 4, 5):
        return f"{code // 100}.0.0"
    return "4.5.0"


def asks_for_fewer_recipients(reply: Reply) -> bool:
    """A RCPT was refused only since the transaction holds enough of them: send the rest in another transaction.

    RFC 5321 4.5.3.1.10: 452; some servers say 552, to be treated alike unless its enhanced code says something else.
    """
    if reply.code == 452:
        return reply.enhanced in {"", "4.5.3"}
    return reply.code == 552 and reply.enhanced in {"", "5.5.3"}
