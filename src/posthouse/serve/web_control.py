"""How a visitor shows control of a host: the tester's own proofs, each visitor with tokens of his own.

That a host is ours, or was proved once by somebody else, counts for nothing here: it lets its owner test it from the
command line, not any stranger from a page.
"""

import asyncio
import secrets
import time
from ipaddress import ip_address

from posthouse.config import Config
from posthouse.dns.host import find_host
from posthouse.dns.mx import NextHops
from posthouse.dns.reach import is_public
from posthouse.dns.resolver import Resolver, is_host_name
from posthouse.policy.networks import Address, normalise_address
from posthouse.serve.testing import identity_of, office_of
from posthouse.serve.wiring import resolver_of
from posthouse.tester.consent import Denial, Method, Obstacle
from posthouse.tester.consent import Proof as ProofOfControl
from posthouse.tester.office import Office, OfficeFault
from posthouse.tester.proving import Host, Missing, challenges, prove
from posthouse.web.document import Proof, Way
from posthouse.web.job import Job, Subject
from posthouse.web.problem import Problem, unreadable
from posthouse.web.service import doubts_of

PROOF_SECONDS = 86400.0
"""How long a visitor may take to show control."""

_LONGEST_HOST = 260


class HostControl:
    """For `web.service`: whom a visitor may have tested besides the address that he calls from."""

    def __init__(self, config: Config, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver

    async def begin(self, host: str, caller: Address) -> tuple[Subject, Proof]:
        """What is to be tested when control is shown, and how to show it. Problem when it may not be tested."""
        del caller
        name, port = self._read(host)
        address = await self._address_of(name)
        office = office_of(self._config)
        answer = await asyncio.to_thread(office.look, name, address)
        if isinstance(answer, Denial) and answer.obstacle is not Obstacle.NO_PROOF:
            raise _refused(answer.words)
        ports = (port,) if port else self._config.web.ports
        asker = secrets.token_hex(8)
        subject = Subject(name, str(address), ports, doubts=doubts_of(address), asker=asker)
        try:
            tokens = await challenges(office, Host(name, address, ports[0], asker), self._resolver)
        except OfficeFault as fault:
            raise Problem(503, "stopping", "Not now", f"{fault}", 60) from fault
        return subject, Proof(_ways(name, tokens), time.time() + PROOF_SECONDS)

    async def look(self, job: Job, way: str, answer: str) -> None:
        """Looks for the proof. Problem when it isn't there."""
        try:
            method = Method(way)
        except ValueError:
            raise unreadable(f"{way[:40]!r} is no way to show control; there are {', '.join(Method)}.") from None
        subject = job.subject
        last: Missing | None = None
        for port in subject.ports if method is not Method.DNS else subject.ports[:1]:
            host = Host(subject.host, ip_address(subject.address), port, subject.asker)
            found = await self._prove(office_of(self._config), method, host, answer)
            if isinstance(found, ProofOfControl):
                return
            last = found
            if method is Method.POSTMASTER and "went to <postmaster>" in found.words:
                break  # one letter is enough
        words = last.words if last is not None else "there is no port to look at"
        raise Problem(422, "not-proved", "Not shown yet", _for_pages(words))

    async def _prove(self, office: Office, method: Method, host: Host, answer: str) -> ProofOfControl | Missing:
        resolver = resolver_of(self._config)  # of its own: no memory of a record that was not there a minute ago
        try:
            return await prove(office, method, host, resolver, identity_of(self._config), answer)
        except OfficeFault as fault:
            raise Problem(503, "stopping", "Not now", f"{fault}", 60) from fault
        finally:
            resolver.close()

    def _read(self, text: str) -> tuple[str, int]:
        """Host name or address, and the port if one is given. Problem."""
        text = text.strip()
        if not text or len(text) > _LONGEST_HOST:
            raise unreadable("Enter the name or the address of a mail server, such as mx.example.org.")
        name, port = text, ""
        if text.startswith("["):
            name, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif text.count(":") == 1:
            name, _, port = text.partition(":")
        if port and (not port.isdecimal() or len(port) > 5 or int(port) not in self._config.web.ports):
            wanted = ", ".join(map(str, self._config.web.ports))
            raise unreadable(f"Port {port[:20]} is not one of those that are tested here: {wanted}.")
        name = name.lower().rstrip(".")
        if _literal(name) is None:
            try:
                name = name.encode("idna").decode("ascii") if not name.isascii() else name
            except UnicodeError:
                name = ""
            if not is_host_name(name) or "." not in name:
                raise unreadable(
                    f"{text[:80]!r} is neither a host name nor an address; write mx.example.org or 192.0.2.1."
                )
        return name, int(port or 0)

    async def _address_of(self, name: str) -> Address:
        """The address to test: the first that may be. Problem."""
        literal = _literal(name)
        if literal is not None:
            addresses: tuple[Address, ...] = (normalise_address(literal),)
        else:
            found = await find_host(self._resolver, name, lambda _addresses: None)
            if not isinstance(found, NextHops):
                raise unreadable(f"{name} has no address that could be found in the DNS; check the name.")
            addresses = tuple(normalise_address(address) for address in found.hosts[0].addresses)
        for address in addresses:
            if is_public(address) or self._config.web.private_hosts:
                return address
        words = f"{name} is at {addresses[0]}, which is no address of the internet: it can't be tested from here."
        raise Problem(403, "not-testable", "Not testable", words)


def _literal(name: str) -> Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _refused(words: str) -> Problem:
    return Problem(403, "not-testable", "Not testable", f"{words[:1].upper()}{words[1:]}.")


def _ways(name: str, tokens: dict[str, str]) -> tuple[Way, ...]:
    found = [
        Way(
            Method.DNS,
            "By a record in DNS",
            "Put this TXT record into the zone. The server must bear the name itself: in its reverse name or its greeting.",
            f"{where}. IN TXT",
            f'"{token}"',
        )
        for where, token in tokens.items()
        if where != "banner"
    ]
    found.append(
        Way(
            Method.BANNER,
            "By the greeting",
            "Have the server say the token in its greeting (Postfix: smtpd_banner; Exim: smtp_banner; sendmail: SmtpGreetingMessage).",
            f"220 {name} ESMTP",
            tokens["banner"],
        )
    )
    words = "A mail with a token goes to postmaster at the server itself, three a day at most; enter what it says."
    found.append(Way(Method.POSTMASTER, "By a mail to its postmaster", words))
    return tuple(found)


def _for_pages(words: str) -> str:
    """A sentence of the command line's, for who reads it on a page."""
    words = words.replace(", then run the same command again", "").replace(
        "put this one into the zone", "put it into the zone"
    )
    return f"{words[:1].upper()}{words[1:]}."
