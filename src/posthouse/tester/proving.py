"""Proof of control: three ways in which the owner of a host shows that it may be tested.

    dns         a TXT record _posthouse-test.NAME holds the token
    banner      the SMTP greeting of the host holds it
    postmaster  a letter brings it to <postmaster> at the host itself, and the owner types it back

A record in the DNS proves control over a name, and a name may point at anybody's address. So for an address of the public
internet the host must bear out the name: by its reverse name or by its greeting. The other two ways prove control over the
address itself: <postmaster> without a domain is the host's own (RFC 5321 4.5.1), and no relay ever passes it on.
"""

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import msgspec

from posthouse.dns.reach import is_public
from posthouse.dns.resolver import Answer, LookupFailed, Resolver, is_host_name
from posthouse.mail.trace import date_time
from posthouse.net.client import ClientChannel, ClientTimeouts, Endpoint, PeerLost, connect
from posthouse.policy.networks import Address
from posthouse.smtp.address import POSTMASTER, parse_mailbox
from posthouse.smtp.event import DotForm
from posthouse.smtp.reply import Reply
from posthouse.tester.consent import Denial, Method, Obstacle, Proof
from posthouse.tester.office import Office
from posthouse.tester.token import Purpose, Token, TokenFault, tokens_in, verify

RECORD = "_posthouse-test"
MOST_LETTERS = 3
"""Letters a day to one host's postmaster."""

_LAST_PRIVILEGED = 1023
"""On ports beyond it any user of a host may listen."""

_PATIENCE = ClientTimeouts(
    connect=15.0, greeting=60.0, command=30.0, mail=30.0, rcpt=30.0, data=30.0, content_block=30.0, content_end=60.0
)


class Identity(msgspec.Struct, frozen=True):
    """How the tester shows itself: its EHLO name, the reverse-path of what it sends, whom to complain to."""

    hello_name: str
    reverse_path: str
    contact: str


class Host(msgspec.Struct, frozen=True):
    """The host in question: what it was called, one address of it, the port of its SMTP server.

    `asker` tells apart who asks, where strangers may ask (the web): what proves control for one is of no use to another,
    who reads it in the DNS or the banner. "" for the owner of this tester.
    """

    name: str
    address: Address
    port: int = 25
    asker: str = ""

    def about(self, method: Method, name: str = "") -> str:
        """What a token for that method is bound to: `name` in the DNS, else the address; and the asker."""
        bound = f"{method} {name or self.address}"
        return f"{bound} {self.asker}" if self.asker else bound


class Missing(msgspec.Struct, frozen=True):
    """Control is not shown yet; `words` say what was found, `todo` is what to do, line by line. `token` is "" where it is secret."""

    words: str
    todo: tuple[str, ...] = ()
    token: str = ""


async def prove(
    office: Office, method: Method, host: Host, resolver: Resolver, identity: Identity, typed: str = ""
) -> Proof | Missing:
    """Looks whether control is shown by that method, and remembers it if so. `typed` is the token that postmaster received.

    A host that is never tested is not even asked: Missing. OfficeFault when nothing can be remembered.
    """
    words = never_tested(office, host)
    if words:
        return Missing(words)
    if method is not Method.DNS and host.port > _LAST_PRIVILEGED and is_public(host.address):
        return Missing(
            f"port {host.port} may be anybody's who has an account on {host.address}: prove control on port 25, 465 or 587"
        )
    match method:
        case Method.DNS:
            found = await _prove_by_dns(office, host, resolver)
        case Method.BANNER:
            found = await _prove_by_banner(office, host)
        case Method.POSTMASTER:
            found = await _prove_by_postmaster(office, host, identity, typed)
    return found if found is not None else office.record_proof(host.name, host.address, method)


def never_tested(office: Office, host: Host) -> str:
    """Why no proof could open the host to a test, since it is listed as never to be tested; "" when it isn't."""
    answer = office.look(host.name, host.address)
    is_listed = isinstance(answer, Denial) and answer.obstacle is Obstacle.DO_NOT_TEST
    return answer.words if is_listed else ""


async def challenges(office: Office, host: Host, resolver: Resolver) -> dict[str, str]:
    """What may be put where, before anybody has looked: the record's name or "banner", and its token. OfficeFault.

    No record for a host that has no name in the DNS.
    """
    name = await _name_of(host, resolver)
    found = {"banner": office.challenge(host.about(Method.BANNER))}
    if isinstance(name, str):
        found[f"{RECORD}.{name}"] = office.challenge(host.about(Method.DNS, name))
    return found


def _is_shown(office: Office, texts: Sequence[str], about: str) -> bool:
    """One of the texts holds a token of ours about that, not expired."""
    return any(
        isinstance(verify(office.key, token, office.now, Purpose.CONSENT, about), Token)
        for text in texts
        for token in tokens_in(text)
    )


# By the DNS.


async def _prove_by_dns(office: Office, host: Host, resolver: Resolver) -> Missing | None:
    name = await _name_of(host, resolver)
    if isinstance(name, Missing):
        return name
    about = host.about(Method.DNS, name)
    record = f"{RECORD}.{name}"
    answer = await resolver.texts(record)
    texts = answer.records if isinstance(answer, Answer) else ()
    if not _is_shown(office, texts, about):
        if isinstance(answer, LookupFailed):
            return Missing(f"the DNS did not say what {record} holds: {answer.words}; try again")
        token = office.challenge(about)
        what = "holds another text" if texts else "is not there"
        todo = (f'{record}. IN TXT "{token}"',)
        return Missing(
            f"the TXT record {record} {what}; put this one into the zone, then run the same command again", todo, token
        )
    return await _unless_borne_out(host, name, resolver)


async def _name_of(host: Host, resolver: Resolver) -> str | Missing:
    """The host's name in the DNS; of a host given by its address, its reverse name."""
    try:
        ip_address(host.name.strip("[]"))
    except ValueError:
        name = host.name.lower().rstrip(".")
        return name if is_host_name(name) else Missing(f"{host.name!r} is no name that can be in the DNS")
    answer = await resolver.host_names(host.address)
    if isinstance(answer, Answer):
        return answer.records[0]
    return Missing(
        f"{host.address} has no reverse name in the DNS: give the host's name, or prove it by banner or postmaster"
    )


async def _unless_borne_out(host: Host, name: str, resolver: Resolver) -> Missing | None:
    """None when the host at that address says itself that the name is its own, or is no host of the public internet."""
    if not is_public(host.address):
        return None
    answer = await resolver.host_names(host.address)
    names = list(answer.records) if isinstance(answer, Answer) else []
    if not any(_is_of(one, name) for one in names):
        greeting = await _greeting(host)
        if isinstance(greeting, Reply):
            names.append(greeting.text.partition(" ")[0].lower().rstrip("."))
    if any(_is_of(one, name) for one in names):
        return None
    said = f"is called {', '.join(names)}" if names else "has no reverse name and no greeting"
    return Missing(
        f"the record is there, but nothing ties {name} to {host.address}, which {said}: set its reverse name or its greeting "
        f"to {name}, or prove control by banner or postmaster"
    )


def _is_of(name: str, owner: str) -> bool:
    return name == owner or name.endswith(f".{owner}")


# By the banner.


async def _prove_by_banner(office: Office, host: Host) -> Missing | None:
    about = host.about(Method.BANNER)
    greeting = await _greeting(host)
    if isinstance(greeting, Missing):
        return greeting
    if _is_shown(office, greeting.lines, about):
        return None
    token = office.challenge(about)
    todo = (
        f"Postfix:    smtpd_banner = $myhostname ESMTP {token}",
        f"Exim:       smtp_banner = $smtp_active_hostname ESMTP {token}",
        f"sendmail:   O SmtpGreetingMessage=$j ESMTP {token}",
        f"any other:  220 {host.name} ESMTP {token}",
    )
    words = f"the greeting of {host.address} port {host.port} does not hold the token; put it there, then run the same command again"
    return Missing(words, todo, token)


async def _greeting(host: Host) -> Reply | Missing:
    """The first reply, whatever its code."""
    try:
        channel = await connect(Endpoint(host.name, str(host.address), host.port), _PATIENCE)
    except PeerLost as lost:
        return Missing(f"{host.address} port {host.port} {lost.words}")
    try:
        reply = (await channel.answer()).reply
        await channel.quit()
    except PeerLost as lost:
        return lost.reply if lost.reply.code else Missing(f"{host.address} port {host.port} {lost.words}")
    finally:
        channel.close()
    return reply


# By postmaster.


async def _prove_by_postmaster(office: Office, host: Host, identity: Identity, typed: str) -> Missing | None:
    about = host.about(Method.POSTMASTER)
    if typed:
        if _is_shown(office, (typed,), about):
            return None
        faults = [verify(office.key, token, office.now, Purpose.CONSENT, about) for token in tokens_in(typed)]
        why = next((fault for fault in faults if isinstance(fault, TokenFault)), TokenFault.MALFORMED)
        return Missing(f"that is not the token that was sent to postmaster at {host.address}: {why.value}")
    if not office.may_write_to(host.address, MOST_LETTERS):
        return Missing(
            f"{MOST_LETTERS} letters went to postmaster at {host.address} today: look for one of them, or try tomorrow"
        )
    refused = await _send_letter(host, identity, office.challenge(about))
    if refused:
        return Missing(f"{host.address} port {host.port} did not take the letter to its postmaster: {refused}")
    todo = ("read it, then run the same command again with --token and what it says",)
    return Missing(f"a letter with the token went to <postmaster> at {host.address}", todo)


async def _send_letter(host: Host, identity: Identity, token: str) -> str:
    """Why the host did not take it; "" when it did."""
    try:
        channel = await connect(Endpoint(host.name, str(host.address), host.port), _PATIENCE)
    except PeerLost as lost:
        return lost.words
    try:
        return await _hand_in(channel, identity, _letter(host, identity, token))
    except PeerLost as lost:
        return lost.words
    finally:
        channel.close()


async def _hand_in(channel: ClientChannel, identity: Identity, letter: bytes) -> str:
    engine = channel.engine
    greeting = (await channel.answer()).reply
    if not greeting.is_positive:
        return str(greeting)
    steps: tuple[Callable[[], None], ...] = (
        lambda: engine.hello(identity.hello_name),
        lambda: engine.mail(parse_mailbox(identity.reverse_path.encode())),
        lambda: engine.rcpt(POSTMASTER),
        engine.data,
    )
    for step in steps:
        step()
        await channel.flush()
        reply = (await channel.answer()).reply
        if not reply.is_positive:
            await channel.quit()
            return str(reply)
    engine.content((letter,), DotForm.NONE)
    engine.end_content()
    await channel.flush()
    reply = (await channel.answer()).reply
    await channel.quit()
    return "" if reply.is_positive else str(reply)


def _letter(host: Host, identity: Identity, token: str) -> bytes:
    date = date_time(int(time.time() * 1000)).decode()
    lines = (
        f"From: <{identity.reverse_path}>",
        "To: postmaster",
        f"Date: {date}",
        f"Message-ID: <consent.{int(time.time())}.{host.port}@{identity.hello_name}>",
        f"Subject: May {host.address} be tested for open relaying?",
        "Auto-Submitted: auto-generated",
        "",
        f"Somebody at {identity.hello_name} asks to test the mail server at {host.address} for open relaying, as",
        "its owner. If that is you, or you agree, give them this token:",
        "",
        f"    {token}",
        "",
        "If not, do nothing: without the token there is no test. To complain, or to be never",
        f"asked again, write to {identity.contact}.",
        "",
    )
    return "\r\n".join(lines).encode("ascii", "replace")
