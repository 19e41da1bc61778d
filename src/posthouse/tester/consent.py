"""Who may be tested: what is ours, and what has proved its consent. There is no option that lifts this.

Ours is loopback, an address of this machine, or a network that the configuration declares. For any other host its owner
shows control (`proving`): by the DNS, by the banner, or by what postmaster received; the proof counts for the address it was
given for, and for a time. A caller may have the address tested that it calls from (the web service), and no other. Above
all stands the list of what is never tested. Hosts that the internet can reach are tested so many times a day and no more.

Here is the decision, without I/O; `office` keeps what must be remembered.
"""

import enum
from collections.abc import Iterable

import msgspec

from posthouse.dns.reach import is_public
from posthouse.policy.domains import DomainTable, PatternError
from posthouse.policy.networks import Address, NetworkError, NetworkSet, normalise_address, parse_network

PROOF_SECONDS = 30 * 86400.0
"""How long a proof of control counts."""

DAY_SECONDS = 86400.0


class Ground(enum.StrEnum):
    """Why a host may be tested."""

    LOOPBACK = "loopback"
    MACHINE = "this-machine"
    OWN_NETWORK = "own-network"
    PROOF = "proof"
    CALLER = "caller"


class Obstacle(enum.StrEnum):
    """Why a host may not be tested."""

    DO_NOT_TEST = "do-not-test"
    NO_PROOF = "no-proof"
    TARGET_LIMIT = "target-limit"
    DAY_LIMIT = "day-limit"
    NOT_KEPT = "not-kept"
    """What must be remembered can't be read or written."""


class Method(enum.StrEnum):
    """How control is proved."""

    DNS = "dns"
    BANNER = "banner"
    POSTMASTER = "postmaster"


class Consent(msgspec.Struct, frozen=True):
    """The host may be tested; `words` say why."""

    ground: Ground
    words: str


class Denial(msgspec.Struct, frozen=True):
    """It may not; `words` say why and what to do."""

    obstacle: Obstacle
    words: str


class Proof(msgspec.Struct, frozen=True):
    """Control over the host at `address` was shown, by whatever name `host` it was called. Seconds since 1970."""

    host: str
    address: str
    method: Method
    proven_at: float
    expires_at: float


class DoNotTest(msgspec.Struct, frozen=True):
    """What is never tested, whoever asks: networks and domain patterns."""

    networks: NetworkSet
    domains: DomainTable[str]

    def entry_for(self, host: str, address: Address) -> str:
        """The entry that forbids the host, "" when none does."""
        name = host.strip().lower().rstrip(".")
        return self.networks.match_text(address) or self.domains.lookup(name) or ""


class ConsentRules(msgspec.Struct, frozen=True):
    """What the configuration and this machine say. `machine` are its own addresses."""

    own_networks: NetworkSet
    machine: frozenset[Address]
    do_not_test: DoNotTest
    tests_per_target: int = 24
    tests_per_day: int = 1000


class Remembered(msgspec.Struct, frozen=True):
    """What has been: proofs for the address, tests of the last day, of it and of all that are counted."""

    proofs: tuple[Proof, ...] = ()
    tests_of_target: int = 0
    tests_in_all: int = 0


def read_do_not_test(entries: Iterable[str]) -> DoNotTest:
    """The list from its entries: addresses, networks, domain patterns; `#` begins a remark. ValueError names a bad one."""
    networks, domains = [], {}
    for line in entries:
        entry = line.partition("#")[0].strip().lower()
        if not entry:
            continue
        try:
            networks.append(parse_network(entry))
        except NetworkError:
            try:
                domains.update(DomainTable({entry: entry}).patterns)
            except PatternError:
                raise ValueError(
                    f"{entry!r} is neither an address, a network (192.0.2.0/24) nor a domain (example.org, .example.org)"
                ) from None
    return DoNotTest(NetworkSet(networks), DomainTable(domains))


def needs_memory(address: Address, rules: ConsentRules) -> bool:
    """The decision rests on what is remembered: always, but for what is ours and out of the internet's reach."""
    return _own_ground(address, rules) is None or (is_public(address) and not _is_here(address, rules))


def decide_consent(
    host: str, address: Address, rules: ConsentRules, remembered: Remembered, now: float, *, is_caller: bool = False
) -> Consent | Denial:
    """May the host at `address`, called `host`, be tested at `now`? `is_caller`: it is the very one that asks for it."""
    address = normalise_address(address)
    forbidden = rules.do_not_test.entry_for(host, address)
    if forbidden:
        words = f"{host} is not tested: {forbidden} is on the list of what is never tested ([tester] do_not_test)"
        return Denial(Obstacle.DO_NOT_TEST, words)
    consent = _own_ground(address, rules) or _given_ground(host, address, remembered, now, is_caller=is_caller)
    if consent is None:
        return Denial(Obstacle.NO_PROOF, _how_to_prove(host, address))
    if needs_memory(address, rules):
        return _over_limit(host, rules, remembered) or consent
    return consent


def _is_here(address: Address, rules: ConsentRules) -> bool:
    return address.is_loopback or address in rules.machine


def _own_ground(address: Address, rules: ConsentRules) -> Consent | None:
    if address.is_loopback:
        return Consent(Ground.LOOPBACK, f"{address} is this machine itself")
    if address in rules.machine:
        return Consent(Ground.MACHINE, f"{address} is an address of this machine")
    network = rules.own_networks.match_text(address)
    if network:
        return Consent(Ground.OWN_NETWORK, f"{address} is in {network}, declared as yours ([tester] own_networks)")
    return None


def _given_ground(
    host: str, address: Address, remembered: Remembered, now: float, *, is_caller: bool
) -> Consent | None:
    if is_caller:
        return Consent(Ground.CALLER, f"{address} asks for its own test")
    for proof in remembered.proofs:
        if proof.address == str(address) and proof.proven_at <= now + DAY_SECONDS and now < proof.expires_at:
            return Consent(Ground.PROOF, f"control over {host} was proved by {proof.method}")
    return None


def _how_to_prove(host: str, address: Address) -> str:
    return (
        f"{host} ({address}) is neither this machine's nor in a network declared as yours, and nobody has proved control over "
        f"it: prove it by --prove dns, --prove banner or --prove postmaster; or declare your network in [tester] own_networks"
    )


def _over_limit(host: str, rules: ConsentRules, remembered: Remembered) -> Denial | None:
    if remembered.tests_of_target >= rules.tests_per_target:
        words = (
            f"{host} was tested {remembered.tests_of_target} times within a day, which is enough; try again tomorrow"
        )
        return Denial(Obstacle.TARGET_LIMIT, words)
    if remembered.tests_in_all >= rules.tests_per_day:
        words = f"{remembered.tests_in_all} tests within a day are the most that this tester makes; try again tomorrow"
        return Denial(Obstacle.DAY_LIMIT, words)
    return None
