"""What a next hop's reply, or its loss, means for a recipient: outcomes with their status and one sentence each."""

from typing import Final

from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.mail.status import Stage, status_of
from posthouse.net.client import Loss, PeerLost
from posthouse.smtp.reply import Reply
from posthouse.transports.api import Unavailable

DIAGNOSTIC_CHARACTERS: Final = 1000

_LOSSES: Final[dict[Loss, tuple[Slug, str]]] = {
    Loss.NOT_REACHED: (Slug.NEXT_HOP_UNREACHABLE, "4.4.1"),
    Loss.CLOSED: (Slug.NEXT_HOP_LOST, "4.4.2"),
    Loss.TIMED_OUT: (Slug.NEXT_HOP_TIMEOUT, "4.4.2"),
    Loss.FAREWELL: (Slug.NEXT_HOP_DEFERRED, "4.3.2"),
    Loss.BROKEN: (Slug.NEXT_HOP_BROKEN, "4.5.0"),
    Loss.TLS: (Slug.TLS_FAILED, "4.7.5"),
}

_WHAT_WAS_SAID: Final[dict[Stage, str]] = {
    Stage.CONNECT: "the connection",
    Stage.GREETING: "the connection",
    Stage.HELLO: "our greeting",
    Stage.TLS: "STARTTLS",
    Stage.AUTH: "our login",
    Stage.MAIL: "the reverse-path",
    Stage.RCPT: "the recipient",
    Stage.DATA: "DATA",
    Stage.CONTENT: "the message",
}


def said(reply: Reply) -> str:
    """The reply as the diagnostic of an outcome, which is stored, logged and quoted in reports: cut where it rambles on."""
    text = str(reply)
    return text if len(text) <= DIAGNOSTIC_CHARACTERS else text[: DIAGNOSTIC_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def taken(reply: Reply, remote: str, *, is_final: bool, speaks_dsn: bool) -> Outcome:
    """The outcome of a positive reply to the content; `is_final` for LMTP, where it means the mailbox."""
    status = status_of(reply, Stage.CONTENT)
    diagnostic = said(reply)
    if is_final:
        return Delivered(status, Reason(Slug.DELIVERED, f"{remote} delivered it: {diagnostic}"), remote, diagnostic)
    reason = Reason(Slug.RELAYED, f"{remote} took responsibility for it: {diagnostic}")
    return Relayed(status, reason, remote, diagnostic, speaks_dsn)


def refused(reply: Reply, stage: Stage, remote: str) -> Outcome:
    """The outcome of a 4yz or 5yz reply."""
    status = status_of(reply, stage)
    diagnostic = said(reply)
    what = _WHAT_WAS_SAID[stage]
    if reply.is_permanent:
        words = f"{remote} refused {what}: {diagnostic}; nothing more will be tried there"
        return Failed(status, Reason(Slug.NEXT_HOP_REFUSED, words), remote, diagnostic)
    words = f"{remote} does not take {what} now: {diagnostic}; it will be tried again"
    return Deferred(status, Reason(Slug.NEXT_HOP_DEFERRED, words), remote, diagnostic)


def lost(peer_lost: PeerLost, remote: str, *, content_was_sent: bool = False) -> Deferred:
    """The outcome when the next hop was lost before it answered."""
    slug, status = _status_of_loss(peer_lost, Stage.CONTENT if content_was_sent else Stage.MAIL)
    words = f"{remote} {peer_lost.words}"
    if content_was_sent and peer_lost.loss is not Loss.FAREWELL:
        words += " after the message was sent whole, so it may arrive twice"
    return Deferred(status, Reason(slug, f"{words}; it will be tried again"), remote, _diagnostic(peer_lost))


def unavailable(peer_lost: PeerLost, stage: Stage, remote: str) -> Unavailable:
    """A next hop that was lost or not reached outside a transaction."""
    slug, status = _status_of_loss(peer_lost, stage)
    return Unavailable(Reason(slug, f"{remote} {peer_lost.words}"), status, remote, _diagnostic(peer_lost))


def turned_away(reply: Reply, stage: Stage, remote: str) -> Unavailable:
    """A next hop that answered 4yz or 5yz before any transaction."""
    slug = Slug.NEXT_HOP_REFUSED if reply.is_permanent else Slug.NEXT_HOP_DEFERRED
    words = f"{remote} refused {_WHAT_WAS_SAID[stage]}: {said(reply)}"
    return Unavailable(Reason(slug, words), status_of(reply, stage), remote, said(reply), reply.is_permanent)


def _status_of_loss(peer_lost: PeerLost, stage: Stage) -> tuple[Slug, str]:
    slug, status = _LOSSES[peer_lost.loss]
    return (slug, status_of(peer_lost.reply, stage)) if peer_lost.reply.code else (slug, status)


def _diagnostic(peer_lost: PeerLost) -> str:
    return said(peer_lost.reply) if peer_lost.reply.code else ""
