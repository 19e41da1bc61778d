"""How each case is said: one function a way, all of them ending in the same question, MAIL, RCPT and the content.

A case is asked in a dialogue that is open and, unless its way begins before that, has said its EHLO. The answer is a value; a
peer that is lost on the way is a PeerLost.
"""

import re
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, ip_address

import msgspec

from posthouse.net.client import Loss, PeerLost
from posthouse.net.tls import lenient_context
from posthouse.smtp.reply import Reply
from posthouse.tester.case import Case, Names, Way
from posthouse.tester.dialogue import Dialogue
from posthouse.tester.verdict import Answer, Refusal, Stage, read_refusal

_POSTMASTER = b"RCPT TO:<postmaster>"
_line_ends = re.compile(r"\bbare\b|line ?feed|carriage return|<(?:LF|CR)>|\b(?:LF|CR)\b").search
_length = re.compile(r"\b64\b|too long|too large|longer|length", re.IGNORECASE).search
_LONGEST_LOCAL_PART = 64  # octets that a server must take, RFC 5321 4.5.3.1.1
_TOO_LONG = (
    "the token, the third party's domain and the host's name make a local part of more than 64 octets, which the host does not "
    "take; a collector with a shorter domain can have it tried"
)
_SMUGGLED_REPLIES = 40
"""More than any false end of data can bring forth before QUIT."""


class Said(msgspec.Struct, frozen=True):
    """One case made ready to be said: its names filled in, and its message."""

    case: Case
    names: Names
    message: bytes

    @property
    def mail(self) -> bytes:
        """The MAIL line."""
        return self.case.mail_line(self.names)

    @property
    def rcpt(self) -> bytes:
        """The RCPT line."""
        return self.case.rcpt_line(self.names)

    @property
    def hello(self) -> str:
        """The name for EHLO."""
        return self.names.fill(self.case.hello)


class NotOffered(msgspec.Struct, frozen=True):
    """The case can't be said to this host; `words` say what it lacks."""

    words: str


Outcome = Answer | NotOffered


def proxy_header(way: Way, target: str, port: int) -> bytes:
    """The PROXY header of a case that has one, else b"": it says that 127.0.0.1 calls (proxy-protocol.txt 2.1, 2.2)."""
    if way is Way.PROXY_V1:
        address = ip_address(target)
        if isinstance(address, IPv4Address):
            return f"PROXY TCP4 127.0.0.1 {address} 40000 {port}\r\n".encode()
        return f"PROXY TCP6 ::1 {address} 40000 {port}\r\n".encode()
    if way is Way.PROXY_V2:
        ours = socket.inet_aton("127.0.0.1")
        body = ours + ours + struct.pack("!HH", 40000, port)
        return b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11" + struct.pack("!H", len(body)) + body
    return b""


async def say(dialogue: Dialogue, said: Said) -> Outcome:
    """Says the case, and the probe if its recipient is accepted. PeerLost."""
    offers = dialogue.offers
    case = said.case
    is_offered = {
        "": True,
        "SMTPUTF8": offers.smtputf8,
        "PIPELINING": offers.pipelining,
        "CHUNKING": offers.chunking,
        "STARTTLS": offers.starttls,
        "AUTH": bool(offers.auth),
    }[case.offered]
    if not is_offered:
        return NotOffered(f"the host does not offer {case.offered}")
    outcome = await _WAYS[case.way](dialogue, said)
    if isinstance(outcome, Answer) and _is_about_length(said, outcome):
        return NotOffered(_TOO_LONG)
    return outcome


def _is_about_length(said: Said, answer: Answer) -> bool:
    """The recipient was refused for its length: that says nothing of a third party with a shorter address."""
    if answer.stage is not Stage.RCPT or answer.reply.is_positive:
        return False
    local_part, text = said.case.local_part(said.names), answer.reply.text
    if len(local_part.encode()) <= _LONGEST_LOCAL_PART:
        return False
    # Some call it bad syntax (OpenSMTPD); but where there are two @ it is that whatever its length.
    is_bad_syntax = answer.reply.code in (501, 553) and "syntax" in text.lower()
    return _length(text) is not None or (is_bad_syntax and "@" not in local_part)


def _no(reply: Reply, stage: Stage) -> Answer:
    return Answer(stage, reply, read_refusal(reply, stage))


async def _separate(dialogue: Dialogue, said: Said) -> Outcome:
    """MAIL, RCPT, DATA one by one; RSET goes out with MAIL where that may be (RFC 2920)."""
    refusal = await _open_transaction(dialogue, said.mail)
    if refusal is not None:
        return refusal
    reply = await dialogue.ask(said.rcpt)
    return await _after_rcpt(dialogue, said, reply)


async def _open_transaction(dialogue: Dialogue, mail: bytes) -> Answer | None:
    """MAIL accepted; else the refusal."""
    if not dialogue.is_clean and dialogue.offers.pipelining:
        dialogue.is_clean = True
        await dialogue.say(b"RSET\r\n" + mail + b"\r\n", 2)
        await dialogue.answer()
        reply = await dialogue.answer()
    else:
        if not dialogue.is_clean:
            await dialogue.reset()
        reply = await dialogue.ask(mail)
    if reply.code < 300:
        dialogue.is_clean = False
        return None
    return _no(reply, Stage.MAIL)


async def _after_rcpt(dialogue: Dialogue, said: Said, reply: Reply) -> Outcome:
    if reply.code >= 300:
        return _no(reply, Stage.RCPT)
    if said.case.ends_at_rcpt:
        return Answer(Stage.RCPT, reply)
    welcome = await dialogue.data()
    if welcome.code != 354:
        return _no(welcome, Stage.DATA)
    return await _content(dialogue, said)


async def _content(dialogue: Dialogue, said: Said) -> Answer:
    reply = await dialogue.content(said.message)
    dialogue.is_clean = reply.code < 300  # Postfix keeps the transaction of a content that it refuses
    return Answer(Stage.CONTENT, reply) if reply.code < 300 else _no(reply, Stage.CONTENT)


async def _pipelined(dialogue: Dialogue, said: Said) -> Outcome:
    if not dialogue.is_clean:
        await dialogue.reset()
    dialogue.is_clean = False
    dialogue.channel.engine.raw(said.mail + b"\r\n" + said.rcpt + b"\r\n", 2)
    dialogue.channel.engine.data()
    await dialogue.channel.flush()
    mail, rcpt = await dialogue.answer(), await dialogue.answer()
    try:
        welcome = await dialogue.answer()
    except PeerLost:
        if rcpt.code < 300:
            raise
        return _no(rcpt, Stage.RCPT)  # it hangs up when it refuses
    # A welcome without a recipient is allowed (RFC 2920 3.1); the content then shows what it is worth.
    content = await _content(dialogue, said) if welcome.code == 354 else None
    if mail.code >= 300:
        return _no(mail, Stage.MAIL)
    if rcpt.code >= 300:
        return _no(rcpt, Stage.RCPT)
    return content if content is not None else _no(welcome, Stage.DATA)


async def _bdat(dialogue: Dialogue, said: Said) -> Outcome:
    refusal = await _open_transaction(dialogue, said.mail)
    if refusal is not None:
        return refusal
    reply = await dialogue.ask(said.rcpt)
    if reply.code >= 300:
        return _no(reply, Stage.RCPT)
    reply = await dialogue.chunk(said.message)
    dialogue.is_clean = reply.code < 300
    return Answer(Stage.CONTENT, reply) if reply.code < 300 else _no(reply, Stage.CONTENT)


async def _after_rset(dialogue: Dialogue, said: Said) -> Outcome:
    """The reset transaction was a good one, if the host lets it be one."""
    hung_up = await _begin_well(dialogue, said)
    if hung_up is not None:
        return hung_up
    await dialogue.reset()
    return await _separate(dialogue, said)


async def _second_recipient(dialogue: Dialogue, said: Said) -> Outcome:
    hung_up = await _begin_well(dialogue, said)
    if hung_up is not None:
        return hung_up
    return await _after_rcpt(dialogue, said, await dialogue.ask(said.rcpt))


async def _begin_well(dialogue: Dialogue, said: Said) -> Outcome | None:
    """A transaction to the host's postmaster; an outcome when nothing can be said behind it."""
    refusal = await _open_transaction(dialogue, said.mail)
    if refusal is not None:
        return refusal
    reply = await dialogue.ask(_POSTMASTER)
    if reply.code >= 400 and await dialogue.is_hung_up():
        return NotOffered(f"the host hangs up on what should come before it: {reply}")
    return None


async def _second_ehlo(dialogue: Dialogue, said: Said) -> Outcome:
    hung_up = await _begin_well(dialogue, said)
    if hung_up is not None:
        return hung_up
    reply = await dialogue.hello(said.hello)
    if reply.code >= 300:
        return _no(reply, Stage.HELLO)
    return await _separate(dialogue, said)


async def _helo(dialogue: Dialogue, said: Said) -> Outcome:
    reply = await dialogue.ask(b"HELO " + said.hello.encode())
    if reply.code >= 300:
        return _no(reply, Stage.HELLO)
    return await _separate(dialogue, said)


async def _starttls(dialogue: Dialogue, said: Said) -> Outcome:
    try:
        await start_tls(dialogue)
    except PeerLost as lost:
        return NotOffered(f"STARTTLS is offered, but the host {lost.words}")
    reply = await dialogue.hello(said.hello)
    if reply.code >= 300:
        return _no(reply, Stage.HELLO)
    return await _separate(dialogue, said)


async def start_tls(dialogue: Dialogue) -> None:
    """STARTTLS and the handshake, whatever the certificate. PeerLost."""
    dialogue.channel.engine.starttls()
    await dialogue.channel.flush()
    reply = await dialogue.answer()
    if reply.code != 220:
        raise PeerLost(Loss.TLS, f"answered STARTTLS with {reply}", reply)
    await dialogue.channel.start_tls(lenient_context(), "")


async def _refused_auth(dialogue: Dialogue, said: Said) -> Outcome:
    """AUTH is begun and called off with "*" (RFC 4954 4): refused without a password having been said."""
    offered = dialogue.offers.auth
    mechanism = next((name for name in ("PLAIN", "LOGIN") if name in offered), offered[0] if offered else "PLAIN")
    reply = await dialogue.ask(f"AUTH {mechanism}".encode())
    if reply.code == 334:
        reply = await dialogue.ask(b"*")
    if await dialogue.is_hung_up():
        return Answer(Stage.HELLO, reply, Refusal.RELAYING)
    return await _separate(dialogue, said)


async def _xclient(dialogue: Dialogue, said: Said) -> Outcome:
    reply = await dialogue.ask(b"XCLIENT NAME=localhost ADDR=127.0.0.1")
    if reply.code >= 300:
        return Answer(Stage.HELLO, reply, Refusal.RELAYING)
    reply = await dialogue.hello(said.hello)
    if reply.code >= 300:
        return _no(reply, Stage.HELLO)
    return await _separate(dialogue, said)


async def _proxied(dialogue: Dialogue, said: Said) -> Outcome:
    """The header has been said before the greeting. Where PROXY isn't spoken it is a bad command, and gets its own reply."""
    reply = await dialogue.ask(b"EHLO " + said.hello.encode())
    if reply.code >= 300:
        return Answer(Stage.HELLO, reply, Refusal.RELAYING)
    dialogue.withdraw()  # it was the answer to EHLO: the header has none
    return await _separate(dialogue, said)


async def _smuggled(dialogue: Dialogue, said: Said) -> Outcome:
    """A mail to the postmaster whose content holds a false end, and behind it the case.

    Where the host itself falls for it, MAIL and RCPT of the case get replies of their own; where a host behind it does, only
    the collector can tell.
    """
    refusal = await _begin_smuggling(dialogue, said)
    return refusal if refusal is not None else await _smuggle(dialogue, (said,))


async def say_together(dialogue: Dialogue, several: Sequence[Said]) -> Answer | None:
    """Smuggled cases, all in one mail to the postmaster, each behind its own false end. PeerLost.

    An answer to all of them: the host would not take the mail that carries them, or took it as the one mail that it is, so
    that only the collector can tell more. None when something showed: then they are to be said apart, for replies to several
    at once can't be told apart, and one false end that is refused says nothing about the others.
    """
    refusal = await _begin_smuggling(dialogue, several[0])
    if refusal is not None:
        return refusal
    answer = await _smuggle(dialogue, several)
    return answer if answer.is_local else None


async def _begin_smuggling(dialogue: Dialogue, said: Said) -> Answer | None:
    """A mail to the postmaster as far as 354; else the refusal."""
    refusal = await _open_transaction(dialogue, said.mail)
    if refusal is not None:
        return refusal
    reply = await dialogue.ask(_POSTMASTER)
    if reply.code >= 300:
        return Answer(Stage.RCPT, reply, Refusal.RELAYING)
    welcome = await dialogue.ask(b"DATA")
    return _no(welcome, Stage.DATA) if welcome.code != 354 else None


async def _smuggle(dialogue: Dialogue, several: Sequence[Said]) -> Answer:
    hidden = ", ".join(repr(said.case.ending) for said in several)
    words = f"a mail to the postmaster, and in it the case behind {hidden}"
    await dialogue.say_hidden(_smuggling(several), _SMUGGLED_REPLIES, words)
    replies: list[Reply] = []
    try:
        while len(replies) < _SMUGGLED_REPLIES and (not replies or replies[-1].code not in (221, 421)):
            replies.append(await dialogue.answer())
    except PeerLost:
        if not replies:
            raise
    dialogue.abort()
    return _read_smuggled(replies)


def _smuggling(several: Sequence[Said]) -> bytes:
    """Whichever ends a host, or one behind it, takes for true: the case behind the first of them is a mail, with what follows
    in it, up to the next that it takes."""
    eol = b"\r\n"
    octets = several[0].message.replace(b"To: ", b"X-Case: ", 1)
    for said in several:
        commands = said.mail + eol + said.rcpt + eol + b"DATA" + eol
        octets = octets.rstrip() + said.case.ending.encode() + commands + said.message
    return octets + b".\r\nQUIT\r\n"


def _read_smuggled(replies: list[Reply]) -> Answer:
    """One reply (and that to QUIT): the whole was one mail. Otherwise those to MAIL, RCPT, DATA and the content follow."""
    answers = [reply for reply in replies if reply.code not in (221, 421)]
    if not answers:
        # sendmail hangs up on whoever says a bare LF: 421, and yet an answer for good.
        is_about_ends = _line_ends(replies[0].text) is not None
        return Answer(Stage.CONTENT, replies[0], Refusal.RELAYING if is_about_ends else Refusal.LATER)
    if len(answers) == 1:
        whole = answers[0]
        if whole.code < 300:
            return Answer(Stage.CONTENT, whole, is_local=True)
        return Answer(Stage.CONTENT, whole, Refusal.RELAYING)
    for stage, reply in zip((Stage.MAIL, Stage.RCPT, Stage.DATA), answers[1:4], strict=False):
        if reply.code >= 400:
            return Answer(stage, reply, Refusal.RELAYING)
    return Answer(Stage.CONTENT, answers[4]) if len(answers) > 4 else Answer(Stage.CONTENT, answers[-1], Refusal.LATER)


_WAYS: dict[Way, Callable[[Dialogue, Said], Awaitable[Outcome]]] = {
    Way.SEPARATE: _separate,
    Way.PIPELINED: _pipelined,
    Way.BDAT: _bdat,
    Way.AFTER_RSET: _after_rset,
    Way.SECOND_RECIPIENT: _second_recipient,
    Way.SECOND_EHLO: _second_ehlo,
    Way.HELO: _helo,
    Way.NO_HELLO: _separate,
    Way.STARTTLS: _starttls,
    Way.REFUSED_AUTH: _refused_auth,
    Way.XCLIENT: _xclient,
    Way.PROXY_V1: _proxied,
    Way.PROXY_V2: _proxied,
    Way.SMUGGLED: _smuggled,
}
