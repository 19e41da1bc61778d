"""The strangers that the rules can tell apart, and which rule each of them meets first.

Nothing a client says of itself is worth anything: HELO, the reverse-path, and the name in its own reverse zone, which
OpenSMTPD does not check forwards (lka_session.c, ruleset.c). So every key of those tables is tried as a claim of a stranger.
"""

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

import msgspec

from posthouse.audit.crowd import Block, blocks, try_network
from posthouse.audit.opensmtpd.rules import Ask, Configuration, Property, Rule, Table
from posthouse.policy.networks import Network, NetworkSet

THIRD_DOMAIN = "third-party.example"
NOBODY_KNOWN = "stranger.example"
_COMMON_ENDINGS = ("com", "net", "org")


class Answer(enum.Enum):
    """Whether a rule matches. UNKNOWN: its table can't be read. DEFERS: smtpd answers 4xx and asks no further rule."""

    YES = enum.auto()
    NO = enum.auto()
    UNKNOWN = enum.auto()
    DEFERS = enum.auto()


class Stranger(msgspec.Struct, frozen=True):
    """What a client without a login may be and say. `host_name` "" means its address has no name."""

    tag: str
    host_name: str
    hello: str
    reverse_path: str
    forward_path: str

    @property
    def domain(self) -> str:
        """The domain of the forward-path."""
        return self.forward_path.rpartition("@")[2]


class Meeting(msgspec.Struct, frozen=True):
    """What a stranger from some block of addresses meets: the rule that decides, None for the refusal at the end.

    `unknown`: the rules above it that might decide instead, each with the question that could not be answered.
    """

    rule: Rule | None
    unknown: tuple[tuple[Rule, Ask], ...] = ()


def hostname_match(name: str, pattern: str) -> bool:
    """OpenSMTPD's wildcards: a star takes everything up to the next character of the pattern (util.c)."""
    at = 0
    place = 0
    while place < len(pattern) and at < len(name):
        if pattern[place] == "*":
            while place < len(pattern) and pattern[place] == "*":
                place += 1
            while at < len(name) and (place >= len(pattern) or name[at].lower() != pattern[place].lower()):
                at += 1
            continue
        if pattern[place].lower() != name[at].lower():
            return False
        place += 1
        at += 1
    return at == len(name) and place == len(pattern)


def _mailbox_match(address: str, key: str) -> bool:
    local, _, domain = address.rpartition("@")
    key_local, at, key_domain = key.rpartition("@")
    if not at:
        key_local, key_domain = key, ""
    if key_domain and not hostname_match(domain, key_domain):
        return False
    bare = local if "+" in key_local else local.partition("+")[0]
    return not key_local or bare.lower() == key_local.lower()


def _regex_match(value: str, pattern: str) -> bool | None:
    """None when the expression is beyond what Python and POSIX mean alike."""
    flags = re.IGNORECASE if pattern.startswith("(?i)") else 0
    bare = pattern.removeprefix("(?i)")
    if re.search(r"\[\[|\\[^.@+*?(){}\[\]^$|\\/_-]|\(\?", bare):
        return None
    try:
        return re.search(bare, value, flags) is not None
    except re.error:
        return None


_WHAT: dict[Property, Callable[[Stranger], str]] = {
    Property.TAG: lambda who: who.tag,
    Property.NAME: lambda who: who.host_name,
    Property.HELLO: lambda who: who.hello,
    Property.REVERSE_PATH: lambda who: who.reverse_path,
    Property.DOMAIN: lambda who: who.domain,
    Property.FORWARD_PATH: lambda who: who.forward_path,
}


def _holds(
    ask: Ask, who: Stranger, address: IPv4Address | IPv6Address, networks: dict[tuple[str, ...], NetworkSet]
) -> Answer:
    """One question about one stranger, before negation."""
    if ask.property is Property.TLS:
        return Answer.DEFERS  # the envelope does not know: "not until TLS flag is added" (ruleset.c)
    if ask.property in (Property.LOGIN, Property.SOCKET):
        return Answer.NO
    if ask.property is Property.NAME and (ask.table is None or not who.host_name):
        return Answer.YES if who.host_name and ask.table is None else Answer.NO
    table = ask.table or Table("")
    if table.why_unknown:
        return Answer.UNKNOWN
    if ask.property is Property.SOURCE and not ask.is_regex:
        return Answer.YES if address in networks[_key(table)] else Answer.NO
    value = str(address) if ask.property is Property.SOURCE else _WHAT[ask.property](who)
    return _in_table(value, table, ask)


def _in_table(value: str, table: Table, ask: Ask) -> Answer:
    answers: Iterable[bool | None]
    if ask.is_regex:
        answers = [_regex_match(value, key) for key in table.keys]
    elif ask.property in (Property.REVERSE_PATH, Property.FORWARD_PATH):
        answers = [_mailbox_match(value, key) for key in table.keys]
    elif ask.property is Property.TAG:
        answers = [value == key for key in table.keys]
    else:
        answers = [hostname_match(value, key) for key in table.keys]
    if any(answers):
        return Answer.YES
    return Answer.UNKNOWN if None in answers else Answer.NO


def _key(table: Table) -> tuple[str, ...]:
    return (table.name, *table.keys)


class Crowd:
    """All strangers of a configuration, and what each meets."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.networks: dict[tuple[str, ...], NetworkSet] = {}
        named: list[Network] = []
        for ask in self._asks(Property.SOURCE):
            table = ask.table or Table("")
            known = [network for network in map(try_network, table.keys) if network is not None]
            self.networks[_key(table)] = NetworkSet(known)
            named += known
        self.blocks: tuple[Block, ...] = blocks(named)

    def trusted(self, ask: Ask) -> tuple[Network, ...]:
        """The networks that a question about the source names."""
        return self.networks[_key(ask.table or Table(""))].networks

    def _asks(self, *properties: Property) -> Iterator[Ask]:
        for rule in self.configuration.rules:
            yield from (ask for ask in rule.asks if ask.property in properties)

    def meet(self, who: Stranger, block: Block) -> Meeting:
        """The first rule that matches a stranger with an address of the block."""
        address = block.example()
        unknown: list[tuple[Rule, Ask]] = []
        for rule in self.configuration.rules:
            answer, ask = self._answer(rule, who, address)
            if answer is Answer.UNKNOWN and ask is not None:
                unknown.append((rule, ask))
            elif answer is Answer.DEFERS:
                return Meeting(None, tuple(unknown))
            elif answer is Answer.YES:
                return Meeting(rule, tuple(unknown))
        return Meeting(None, tuple(unknown))

    def _answer(self, rule: Rule, who: Stranger, address: IPv4Address | IPv6Address) -> tuple[Answer, Ask | None]:
        """NO as soon as one question says so; else whatever is unknown."""
        unknown: Ask | None = None
        for ask in rule.asks:
            answer = _holds(ask, who, address, self.networks)
            if answer is Answer.DEFERS:
                return answer, ask
            if answer is Answer.UNKNOWN:
                unknown = unknown or ask
            elif (answer is Answer.YES) is ask.is_negated or _is_nameless(ask, who):
                return Answer.NO, ask
        return (Answer.UNKNOWN, unknown) if unknown else (Answer.YES, None)

    def strangers(self) -> Iterator[Stranger]:
        """One of every kind that the rules tell apart, the plainest first."""
        tags = sorted({listener.tag for listener in self.configuration.listeners} or {""})
        hellos = self._claims(NOBODY_KNOWN, Property.HELLO)
        names = ("", *self._claims(f"mail.{NOBODY_KNOWN}", Property.NAME))
        reverse_paths = (*self._claims(f"someone@{NOBODY_KNOWN}", Property.REVERSE_PATH), "")
        for forward_path in self._third_parties():
            for tag in tags:
                for hello in hellos:
                    for name in names:
                        yield from (Stranger(tag, name, hello, path, forward_path) for path in reverse_paths)

    def _claims(self, plain: str, of: Property) -> tuple[str, ...]:
        """The plain one, and one for each way in which the tables of that property can tell claims apart."""
        asks = list(self._asks(of))
        found = {self._signature(plain, asks): plain}
        for ask in asks:
            for key in (ask.table or Table("")).keys:
                claim = _witness(key, ask)
                found.setdefault(self._signature(claim, asks), claim)
        return tuple(found.values())

    def _signature(self, claim: str, asks: list[Ask]) -> tuple[Answer, ...]:
        return tuple(_in_table(claim, ask.table or Table(""), ask) for ask in asks)

    def _third_parties(self) -> tuple[str, ...]:
        """Mailboxes that are nobody's here: of a domain nobody listed, or that only a wide pattern lists."""
        asks = list(self._asks(Property.DOMAIN, Property.FORWARD_PATH))
        plain = f"someone@{THIRD_DOMAIN}"
        found = [plain]
        for ask in asks:
            for key in (ask.table or Table("")).keys:
                found += _third_party_by(key, ask)
        signatures: dict[tuple[Answer, ...], str] = {}
        for path in found:
            values = [path if ask.property is Property.FORWARD_PATH else path.rpartition("@")[2] for ask in asks]
            signature = tuple(
                _in_table(value, ask.table or Table(""), ask) for value, ask in zip(values, asks, strict=True)
            )
            signatures.setdefault(signature, path)
        return tuple(signatures.values())


def _is_nameless(ask: Ask, who: Stranger) -> bool:
    """A table of names never matches a client without one, not even when it is negated (ruleset.c)."""
    return ask.property is Property.NAME and ask.table is not None and not who.host_name


def _witness(key: str, ask: Ask) -> str:
    """A claim that the key would match: stars and the plainest expressions filled in."""
    if ask.is_regex:
        key = re.sub(r"\.[*+]|\[[^\]]*\][*+]?", "x", key.removeprefix("(?i)").strip("^$")).replace("\\", "")
        key = key.partition("|")[0].replace("(", "").replace(")", "")
    key = key.replace("*", "x")
    if ask.property in (Property.REVERSE_PATH, Property.FORWARD_PATH) and not ask.is_regex:
        local, at, domain = key.rpartition("@")
        if not at:
            local, domain = key, ""
        return f"{local or 'someone'}@{domain or NOBODY_KNOWN}"
    return key


def _third_party_by(key: str, ask: Ask) -> list[str]:
    """Third parties that this key alone may let in."""
    if ask.property is Property.FORWARD_PATH and not ask.is_regex:
        local, _, domain = key.rpartition("@") if "@" in key else (key, "", "")
        return [f"{local or 'someone'}@{one}" for one in _wide(domain)] if domain else [f"{local}@{THIRD_DOMAIN}"]
    if ask.is_regex:
        local, at, witness = _witness(key, ask).rpartition("@")
        endings = [f"third-party.{ending}" for ending in _COMMON_ENDINGS]
        named = [f"{local if at else witness}@{THIRD_DOMAIN}"] if ask.property is Property.FORWARD_PATH else []
        # An expression without an anchor is met by other people's names, too: x@ours.test.third-party.example.
        return named + [f"someone@{one}" for one in (*endings, f"{witness}.{THIRD_DOMAIN}", f"third-party{witness}")]
    return [f"someone@{one}" for one in _wide(key)]


def _wide(pattern: str) -> list[str]:
    """A third party's domain for a pattern that stands for no one's in particular: "*", "*.org", "*example.org"."""
    if "*" not in pattern:
        return []
    ending = pattern.rpartition("*")[2]
    if ending.startswith(".") and "." in ending[1:]:
        return []  # the subdomains of somebody's domain
    if not ending:
        return [pattern.replace("*", "third-party") if "." in pattern else THIRD_DOMAIN]
    return [pattern.replace("*", "third-party")]
