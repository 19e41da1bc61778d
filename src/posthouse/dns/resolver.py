"""Questions to the DNS with a cache in front: one question at a time for each name and type, answers as values.

A name that does not exist is an answer (NoName), and so is one without such records (NoData); only what could not be learned
is a LookupFailed. Positive answers are kept for their TTL, negative ones as RFC 2308 says, both within bounds; failures
are not kept, since a queue asks again in its own time.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.MX
import msgspec

from posthouse.dns.exchange import EDNS_PAYLOAD, ExchangeFailed, Server, exchange
from posthouse.observe.metrics import dns_queries

RESOLV_CONF = Path("/etc/resolv.conf")
CACHE_ENTRIES = 10_000
LONGEST_TTL = 3600.0  # seconds; a record that moves is noticed within an hour, whatever its TTL
LONGEST_NEGATIVE_TTL = 300.0  # seconds; who has just repaired a zone should not have to wait
_ROUNDS = 2  # how often each server is asked before giving up
_CHAIN_QUERIES = 8  # questions that one chain of aliases may cost; each answer may hold a longer part of it
_QUESTIONS_AT_ONCE = 100  # sockets
_SYSTEM_SERVERS = 3  # as many as resolv.conf(5) takes
_SYSTEM_SERVERS_TTL = 30.0  # seconds between two looks at resolv.conf
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")

R = TypeVar("R")


class MailExchange(msgspec.Struct, frozen=True, order=True):
    """An MX record. `exchange` is lower case without a trailing dot; "" is the root, of a null MX (RFC 7505)."""

    preference: int
    exchange: str


class Answer(msgspec.Struct, Generic[R], frozen=True):
    """The records there are, at least one. `ttl` is how many seconds after the question they may be used.

    `name` is the name that holds them, at the end of a chain of aliases.
    """

    records: tuple[R, ...]
    ttl: float
    name: str


class NoName(msgspec.Struct, frozen=True):
    """The name does not exist (NXDOMAIN)."""

    ttl: float


class NoData(msgspec.Struct, frozen=True):
    """The name exists, without records of that type."""

    ttl: float


class LookupFailed(msgspec.Struct, frozen=True):
    """Nothing was learned: time ran out, or every server failed. `words` say what happened last."""

    words: str


Lookup = Answer[R] | NoName | NoData | LookupFailed


def is_host_name(text: str) -> bool:
    """Letters, digits, hyphens and, as the world has it, underscores; labels and length as in RFC 1035 2.3.4."""
    return _HOST_NAME.match(text) is not None


def system_servers(path: Path = RESOLV_CONF) -> tuple[Server, ...]:
    """The name servers of resolv.conf(5); this machine's own when the file names none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    found = [Server(word[1]) for word in words if len(word) > 1 and word[0] == "nameserver"]
    return tuple(found[:_SYSTEM_SERVERS]) or (Server("127.0.0.1"),)


class Resolver:
    """Asks the given recursive servers, in order, or without any those of resolv.conf(5); belongs to one event loop.

    `timeout` is the seconds that one question may take in all, retries and TCP included. `clock` gives seconds.
    """

    def __init__(
        self,
        servers: Sequence[Server] = (),
        timeout: float = 5.0,
        cache_entries: int = CACHE_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        self._given_servers = tuple(servers)
        self._system_servers: tuple[Server, ...] = ()
        self._read_system_servers_at = -float("inf")
        self._resolv_conf = resolv_conf
        self._timeout = timeout
        self._clock = clock
        self._cache_entries = cache_entries
        self._cache: OrderedDict[tuple[str, dns.rdatatype.RdataType], tuple[float, Lookup[Any]]] = OrderedDict()
        self._asking: dict[tuple[str, dns.rdatatype.RdataType], asyncio.Task[Lookup[Any]]] = {}
        self._sockets = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

    async def mail_exchanges(self, name: str) -> Lookup[MailExchange]:
        """The MX records of a name, in no order."""
        return await self._lookup(name, dns.rdatatype.MX)

    async def ipv4_addresses(self, name: str) -> Lookup[IPv4Address]:
        """The A records of a name."""
        return await self._lookup(name, dns.rdatatype.A)

    async def ipv6_addresses(self, name: str) -> Lookup[IPv6Address]:
        """The AAAA records of a name."""
        return await self._lookup(name, dns.rdatatype.AAAA)

    async def texts(self, name: str) -> Lookup[str]:
        """The TXT records of a name, the strings of each joined; octets that are no UTF-8 are replaced."""
        return await self._lookup(name, dns.rdatatype.TXT)

    async def host_names(self, address: IPv4Address | IPv6Address) -> Lookup[str]:
        """The names that the owner of an address gives it (PTR, RFC 1035 3.5), lower case, without a trailing dot."""
        return await self._lookup(address.reverse_pointer, dns.rdatatype.PTR)

    def close(self) -> None:
        """Ends the questions under way; who waits for one is cancelled."""
        for task in self._asking.values():
            task.cancel()

    async def _lookup(self, name: str, kind: dns.rdatatype.RdataType) -> Lookup[Any]:
        name = name.lower().removesuffix(".")
        if not is_host_name(name):
            return NoName(LONGEST_NEGATIVE_TTL)
        key = (name, kind)
        kept = self._cache.get(key)
        if kept is not None and kept[0] > self._clock():
            self._cache.move_to_end(key)
            dns_queries.inc("cached")
            return kept[1]
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask_and_keep(key))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        # Many may wait for one answer: one that is cancelled must not take it from the others.
        return await asyncio.shield(task)

    async def _ask_and_keep(self, key: tuple[str, dns.rdatatype.RdataType]) -> Lookup[Any]:
        asked_at = self._clock()
        async with self._sockets:
            found = await self._follow(*key)
        if isinstance(found, LookupFailed):
            dns_queries.inc("failed")
            return found
        dns_queries.inc("answered" if isinstance(found, Answer) else "none")
        if found.ttl > 0:
            self._cache[key] = (asked_at + found.ttl, found)
            self._cache.move_to_end(key)
            while len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        return found

    async def _follow(self, name: str, kind: dns.rdatatype.RdataType) -> Lookup[Any]:
        """Asks along a chain of aliases: a server may answer with only the part of it that it knows."""
        owner = dns.name.from_text(name)
        ttl = LONGEST_TTL
        deadline = self._clock() + self._timeout
        for _ in range(_CHAIN_QUERIES):
            message = await self._ask(owner, kind, deadline)
            if isinstance(message, ExchangeFailed):
                return LookupFailed(message.words)
            try:
                chain = message.resolve_chaining()
            except (dns.exception.DNSException, ValueError) as error:
                return LookupFailed(f"the answer for {name} makes no sense: {type(error).__name__}")
            ttl = min(ttl, chain.minimum_ttl)
            if chain.answer is not None:
                records = _records(chain.answer, kind)
                end = chain.canonical_name.to_text(omit_final_dot=True).lower()
                return Answer(records, ttl, end) if records else NoData(min(ttl, LONGEST_NEGATIVE_TTL))
            if message.rcode() == dns.rcode.NXDOMAIN:
                return NoName(min(ttl, LONGEST_NEGATIVE_TTL))
            if chain.canonical_name == owner or any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority):
                return NoData(min(ttl, LONGEST_NEGATIVE_TTL))
            owner = chain.canonical_name
        return LookupFailed(f"the chain of aliases from {name} has no end")

    def _servers(self) -> tuple[Server, ...]:
        """Those given, else the system's of now: a machine that moves to another network gets other ones."""
        if not self._given_servers and self._clock() - self._read_system_servers_at > _SYSTEM_SERVERS_TTL:
            self._read_system_servers_at = self._clock()
            self._system_servers = system_servers(self._resolv_conf)
        return self._given_servers or self._system_servers

    async def _ask(
        self, owner: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: float
    ) -> dns.message.QueryMessage | ExchangeFailed:
        """The first usable answer of any server."""
        failed = ExchangeFailed("no name server was asked in time")
        servers = self._servers()
        share = self._timeout / (_ROUNDS * len(servers))
        for _ in range(_ROUNDS):
            for server in servers:
                left = min(share, deadline - self._clock())
                if left <= 0:
                    return failed
                answer = await _ask_one(owner, kind, server, left)
                if not isinstance(answer, ExchangeFailed):
                    return answer
                failed = answer
        return failed


async def _ask_one(
    owner: dns.name.Name, kind: dns.rdatatype.RdataType, server: Server, seconds: float
) -> dns.message.QueryMessage | ExchangeFailed:
    """One server's answer; asked again without EDNS when it seems not to know that (RFC 6891 6.2.2)."""
    code = dns.rcode.NOERROR
    for payload in (EDNS_PAYLOAD, 0):
        query = dns.message.make_query(owner, kind, use_edns=0 if payload else False, payload=payload or None)
        message = await exchange(query, server, seconds)
        if isinstance(message, ExchangeFailed):
            return message
        code = message.rcode()
        if code == dns.rcode.NOERROR and _is_referral(message):
            return ExchangeFailed(
                f"name server {server} does not look up {owner.to_text(True)} for us: it names others to ask"
            )
        if code in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return cast(dns.message.QueryMessage, message)
        if code not in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            break
    return ExchangeFailed(f"name server {server} answered {dns.rcode.to_text(code)} for {owner.to_text(True)}")


def _is_referral(message: dns.message.Message) -> bool:
    """No answer at all, not even that there is none (RFC 2308 2.2): what servers say that do not recurse, and lame ones."""
    kinds = {rrset.rdtype for rrset in message.authority}
    return not message.answer and dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds


def _records(rrset: Any, kind: dns.rdatatype.RdataType) -> tuple[Any, ...]:
    match kind:
        case dns.rdatatype.A:
            return tuple(IPv4Address(rdata.address) for rdata in rrset)
        case dns.rdatatype.AAAA:
            return tuple(IPv6Address(rdata.address) for rdata in rrset)
        case dns.rdatatype.TXT:
            return tuple(b"".join(rdata.strings).decode("utf-8", "replace") for rdata in rrset)
        case dns.rdatatype.PTR:
            return tuple(rdata.target.to_text(omit_final_dot=True).lower() for rdata in rrset)
        case _:
            return tuple(
                MailExchange(rdata.preference, rdata.exchange.to_text(omit_final_dot=True).lower().removesuffix("."))
                for rdata in rrset
            )
