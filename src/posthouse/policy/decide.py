"""The one place where grants are given.

The order of the questions is the policy:

1. By what right may this client relay at all: a trusted network (on a listener of role relay), a login, a uid on the
   local socket? None is the rule; an unknown client has none.
2. Without a right: a submission listener wants a login, and an address that routes by its local part is refused.
3. Is the domain ours (local, relay)? Then the recipient must be valid, and anyone may send to it.
4. Elsewhere: only with a right.
5. Has this transaction room for one more?

A lab listener is apart from all that: there counts its window alone (`policy.lab`), and a login gives nothing.

An unknown fact never grants. What a stranger may do everyone may, so a fact that is still to be gathered is asked for
only when the answer to a stranger would not be a grant.
"""

import enum
from functools import lru_cache

import msgspec

from posthouse.mail.grant import Grant, GrantKind
from posthouse.mail.reason import Reason, Slug
from posthouse.policy._issue import issue
from posthouse.policy.aliases import Ring
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.rules import Destination, Place, Rules
from posthouse.smtp.address import AddressError, Path
from posthouse.smtp.reply import Reply

ROUTING_CHARACTERS = b"%!@:"
"""In a local part they are read as a route by some next hop: the percent hack, UUCP bang paths, and the mailbox inside a
quoted local part. RFC 5321 3.3 and 3.6.1 leave the local part to the final host alone; so do we, for clients with a right."""


class Refusal(msgspec.Struct, frozen=True):
    """Never: the reply is a 5yz, and the reason says what to do."""

    reason: Reason
    reply: Reply


class Deferral(msgspec.Struct, frozen=True):
    """Not now: the reply is a 4yz, and an honest client tries again."""

    reason: Reason
    reply: Reply


class Fact(enum.StrEnum):
    """What may have to be gathered before a decision."""

    CLIENT = "client"


class Need(msgspec.Struct, frozen=True):
    """One more fact matters: gather it, or state that it is not learnable, and ask again."""

    fact: Fact


Decision = Grant | Refusal | Deferral | Need

NEED_CLIENT = Need(Fact.CLIENT)


def decide(facts: Facts, rules: Rules) -> Decision:
    """May this client send to this forward-path?"""
    right = _find_right(facts, rules)
    if right is Unknown.NOT_YET:
        answer = _rule(facts, rules, None)
        return answer if isinstance(answer, Grant) else NEED_CLIENT
    return _rule(facts, rules, right if isinstance(right, Grant) else None)


def has_routing_trick(path: Path) -> bool:
    """The local part holds a character by which some next hop would route."""
    return len(path.local_part.translate(None, ROUTING_CHARACTERS)) != len(path.local_part)


def _find_right(facts: Facts, rules: Rules) -> Grant | Unknown | None:
    if facts.role is Role.LAB:
        return _lab_right(facts, rules)
    if facts.role is Role.LOCAL:
        return _local_user(facts.local_uid) if facts.local_uid >= 0 else None
    if facts.login:
        return _authenticated_user(facts.login)
    if facts.role is not Role.RELAY:
        return None
    if isinstance(facts.client, Unknown):
        return facts.client
    if rules.networks_suspended:
        return None
    network = rules.trusted_networks.match_text(facts.client)
    return _trusted_network(network) if network else None


def _lab_right(facts: Facts, rules: Rules) -> Grant | Unknown | None:
    lab = rules.lab(facts.lab)
    if lab is None or lab.is_over(facts.now):
        return None
    if isinstance(facts.client, Unknown):
        return facts.client
    return _lab_window(lab.name, lab.bounds, lab.until) if lab.admits(facts.client) else None


def _rule_lab(facts: Facts, rules: Rules, right: Grant | None) -> Grant | Refusal | Deferral:
    """On a lab listener: to the listed destinations, for those inside its window, until its end; nothing else at all."""
    path, lab = facts.forward_path, rules.lab(facts.lab)
    if lab is None:
        return _relay_denied(path.domain, _client_text(facts))
    if lab.is_over(facts.now):
        return lab_over(lab.until)
    if right is None:
        return _relay_denied(path.domain, _client_text(facts))
    if has_routing_trick(path):
        return _ROUTING_TRICK
    if not path.domain or lab.destinations.lookup(path.domain) is None:
        return _not_of_lab(", ".join(lab.destinations.patterns))
    return right if rules.relay_enabled else RELAY_OFF


def _rule(facts: Facts, rules: Rules, right: Grant | None) -> Grant | Refusal | Deferral:
    path = facts.forward_path
    if facts.role is Role.LAB:
        answer = _rule_lab(facts, rules, right)
        over = isinstance(answer, Grant) and facts.recipients_accepted >= rules.recipients_stranger
        return _too_many(rules.recipients_stranger) if over else answer
    if right is None:
        if facts.role is Role.SUBMISSION:
            return _LOGIN_REQUIRED
        if has_routing_trick(path):
            return _ROUTING_TRICK
    destination = rules.domains.lookup(path.domain)
    answer = _rule_elsewhere(facts, rules, right) if destination is None else _rule_inside(path, rules, destination)
    if isinstance(answer, Grant):
        limit = rules.recipients_stranger if right is None else rules.recipients_trusted
        if facts.recipients_accepted >= limit:
            return _too_many(limit)
    return answer


def _rule_inside(path: Path, rules: Rules, destination: Destination) -> Grant | Refusal | Deferral:
    """A domain of ours: anyone may send to a valid recipient of it."""
    if not rules.is_valid_recipient(path, destination):
        return _no_such_recipient(path)
    match destination.place:
        case Place.LOCAL:
            return _local_delivery(destination.pattern)
        case Place.RELAY:
            return _relay_domain(destination.pattern) if rules.relay_enabled else RELAY_OFF
    return _relay_denied(path.domain, "this client")  # type: ignore[unreachable]  # closed, should a Place be added


def _rule_elsewhere(facts: Facts, rules: Rules, right: Grant | None) -> Grant | Refusal | Deferral:
    """A domain that is not ours, an address literal, or no domain at all."""
    path = facts.forward_path
    if not path.domain:
        return _POSTMASTER if path.local_part.lower() == b"postmaster" else _INCOMPLETE
    if right is None:
        if facts.client is Unknown.NOT_LEARNABLE and facts.role is Role.RELAY:
            return _client_unknown(path.domain)
        if _would_be_trusted(facts, rules):
            return NETWORKS_SUSPENDED
        return _relay_denied(path.domain, _client_text(facts))
    return right if rules.relay_enabled else RELAY_OFF


def _would_be_trusted(facts: Facts, rules: Rules) -> bool:
    """The client has no right only because networks are suspended: it is told so, since it can do something about it."""
    if not rules.networks_suspended or facts.role is not Role.RELAY or isinstance(facts.client, Unknown):
        return False
    return facts.client in rules.trusted_networks


def grant_notification(forward_path: Path, rules: Rules) -> Grant | Refusal:
    """The grant for a notification of our own (a DSN, a report to the postmaster); its reverse-path must be null.

    Refused to the null path (no bounce for a bounce, RFC 5321 6.1), and to a routing trick in a domain of ours: a
    stranger's reverse-path must not become a route through our own next hops. With the relay option off it is granted
    all the same: what is queued for elsewhere is held, and a lost bounce would be lost for good.
    """
    if forward_path.is_null or (not forward_path.domain and forward_path.local_part.lower() != b"postmaster"):
        return _INCOMPLETE
    if has_routing_trick(forward_path) and rules.domains.lookup(forward_path.domain) is not None:
        return _ROUTING_TRICK
    return _OWN_NOTIFICATION


def expand(forward_path: Path, grant: Grant, rules: Rules) -> tuple[tuple[Path, Grant], ...] | Refusal | Deferral:
    """The recipients that a granted forward-path stands for, each with its grant; mostly itself alone.

    Aliases are followed to their ends, each address once; a grant to a target says which alias led there. With the relay
    option off an alias that leads elsewhere defers its recipient. A ring of aliases is refused (compile_rules lets none in).
    """
    if forward_path.domain and not len(rules.aliases):
        return ((forward_path, grant),)
    ends = rules.aliases.follow(_owner(forward_path, rules), rules.bears_names)
    if isinstance(ends, Ring):
        return _ring(ends)
    key = path_text(forward_path)
    granted = tuple((end, grant if end == forward_path else _through_alias(end, key, rules)) for end in ends)
    if not rules.relay_enabled and any(one.kind is GrantKind.FORWARDING for _, one in granted):
        return RELAY_OFF
    return granted


def _owner(forward_path: Path, rules: Rules) -> Path:
    """Who has the mail of `<postmaster>`: its alias, else the configured postmaster, else the path itself."""
    if forward_path.domain or rules.aliases.targets(forward_path, is_local=True):
        return forward_path
    return rules.postmaster


def _through_alias(target: Path, key: str, rules: Rules) -> Grant:
    if rules.is_local(target):
        return issue(GrantKind.LOCAL_DELIVERY, Slug.LOCAL_DELIVERY, f"{key} is delivered here by the configuration")
    return issue(GrantKind.FORWARDING, Slug.FORWARDING, f"{key} forwards there, set by the configuration")


def restore_grant(kind: str, slug: str, words: str) -> Grant:
    """The grant that a spool row holds, as it was given when the recipient was accepted.

    For the spool alone (a test holds that nothing else calls it): the row's existence is the right. ValueError when
    `kind` or `slug` is not one of ours.
    """
    return issue(GrantKind(kind), Slug(slug), words)


# Grants that many messages share, made once for each rule.


@lru_cache(maxsize=4096)
def _local_delivery(pattern: str) -> Grant:
    return issue(GrantKind.LOCAL_DELIVERY, Slug.LOCAL_DELIVERY, f"local_domains holds {pattern}")


@lru_cache(maxsize=4096)
def _relay_domain(pattern: str) -> Grant:
    return issue(GrantKind.RELAY_DOMAIN, Slug.RELAY_DOMAIN, f"relay_domains holds {pattern}")


@lru_cache(maxsize=4096)
def _trusted_network(network: str) -> Grant:
    return issue(GrantKind.TRUSTED_NETWORK, Slug.TRUSTED_NETWORK, f"the client is in the trusted network {network}")


@lru_cache(maxsize=4096)
def _authenticated_user(login: str) -> Grant:
    return issue(GrantKind.AUTHENTICATED_USER, Slug.AUTHENTICATED_USER, f"{login} has logged in")


@lru_cache(maxsize=4096)
def _local_user(uid: int) -> Grant:
    return issue(GrantKind.LOCAL_USER, Slug.LOCAL_USER, f"uid {uid} of this machine handed it in")


@lru_cache(maxsize=64)
def _lab_window(name: str, bounds: str, until: str) -> Grant:
    words = f"the lab on {name} is open on purpose, {bounds}, until {until}"
    return issue(GrantKind.LAB_WINDOW, Slug.LAB_WINDOW, words)


_POSTMASTER = issue(GrantKind.LOCAL_DELIVERY, Slug.LOCAL_DELIVERY, "<postmaster> is always accepted (RFC 5321 4.5.1)")
_OWN_NOTIFICATION = issue(GrantKind.OWN_NOTIFICATION, Slug.OWN_NOTIFICATION, "a notification of this server's own")


# Refusals and deferrals.


def _refusal(code: int, enhanced: str, slug: Slug, words: str) -> Refusal:
    return Refusal(Reason(slug, words), Reply(code, enhanced, (words,)))


def _deferral(code: int, enhanced: str, slug: Slug, words: str) -> Deferral:
    return Deferral(Reason(slug, words), Reply(code, enhanced, (words,)))


_LOGIN_REQUIRED = _refusal(
    530, "5.7.0", Slug.LOGIN_REQUIRED, "Log in first: this port takes mail only from users with an account"
)
_ROUTING_TRICK = _refusal(
    550,
    "5.7.1",
    Slug.ROUTING_TRICK,
    "Relaying by a local part with %, !, @ or : is denied; give the recipient's own address",
)
_INCOMPLETE = _refusal(550, "5.1.3", Slug.NO_SUCH_RECIPIENT, "The address has no domain; write user@example.org")
RELAY_OFF = _deferral(
    450,
    "4.7.1",
    Slug.RELAY_OFF,
    "Relaying is switched off on this server for now; try again later or ask its postmaster",
)
"""Deferred, not refused: the option is a brake for an emergency, and honest mail shall survive it."""

NETWORKS_SUSPENDED = _deferral(
    450,
    "4.7.1",
    Slug.NETWORKS_SUSPENDED,
    "Relaying for trusted networks is suspended here, as a test from outside found client addresses masked: log in, "
    "or have the postmaster read `posthouse relay status`",
)
"""Deferred for the same cause: behind a masked address honest clients and strangers can't be told apart, and honest ones
shall lose nothing while the network is mended."""


@lru_cache(maxsize=16)
def _too_many(limit: int) -> Deferral:
    words = f"{limit} recipients are the most in one transaction; send the others in another"
    return _deferral(452, "4.5.3", Slug.TOO_MANY_RECIPIENTS, words)


def lab_over(until: str) -> Refusal:
    """What a lab says to everything after its end."""
    return _refusal(550, "5.7.1", Slug.LAB_OVER, f"This lab ended at {until}; it takes nothing any more")


@lru_cache(maxsize=64)
def _not_of_lab(destinations: str) -> Refusal:
    words = f"This is a lab: it relays to {destinations} and nowhere else"
    return _refusal(550, "5.7.1", Slug.RELAY_DENIED, words)


def _no_such_recipient(path: Path) -> Refusal:
    words = f"There is no recipient {path_text(path)} here; check the address"
    return _refusal(550, "5.1.1", Slug.NO_SUCH_RECIPIENT, words)


def _relay_denied(domain: str, client: str) -> Refusal:
    words = f"Relaying to {domain} is denied for {client}; log in, or use the mail server of your own network"
    return _refusal(550, "5.7.1", Slug.RELAY_DENIED, words)


def _client_unknown(domain: str) -> Refusal:
    words = f"Relaying to {domain} is denied: the address of the client is not known here; log in"
    return _refusal(550, "5.7.1", Slug.ADDRESS_UNKNOWN, words)


def _ring(ring: Ring) -> Refusal:
    return _refusal(550, "5.4.6", Slug.MAIL_LOOP, f"The aliases of {ring.key} lead back to it; tell the postmaster")


def _client_text(facts: Facts) -> str:
    return "this client" if isinstance(facts.client, Unknown) else str(facts.client)


def path_text(path: Path) -> str:
    """The path in angle brackets for people, in ASCII."""
    try:
        return f"<{path.encode().decode('ascii', 'backslashreplace')}>"
    except AddressError:  # a control character: no parser of ours lets one in
        return f"<{path.local_part!a}@{path.domain}>"
