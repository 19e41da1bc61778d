"""The relay matrix: who × to where × answer, in words; and how it changes when rules are exchanged.

Every answer is asked of `decide`, with the representative of the class that a row speaks of.
"""

from collections.abc import Iterator
from itertools import groupby

import msgspec

from posthouse.mail.grant import Grant
from posthouse.policy.aliases import Ring
from posthouse.policy.classes import TRICKS, Client, Standing, clients, outsider, third_party
from posthouse.policy.decide import Decision, Deferral, Need, decide
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.networks import Network, NetworkSet, network_text
from posthouse.policy.rules import NoList, Place, RecipientList, Rules
from posthouse.smtp.address import POSTMASTER, Path

ANYONE = "anyone"
ELSEWHERE = "anywhere else"


class Row(msgspec.Struct, frozen=True):
    """One line of the matrix. `slug` is the grant's kind or the refusal's reason, `answer` the same for people."""

    who: str
    where: str
    granted: bool
    slug: str
    answer: str


class Matrix(msgspec.Struct, frozen=True):
    """All rows, those of the same `who` together."""

    rows: tuple[Row, ...]

    def lines(self, most: int = 30) -> list[str]:
        """Aligned lines of text; of a run of more than `most` alike rows only the first, and how many were left out."""
        shown: list[tuple[str, str, str]] = []
        for _, run in groupby(
            self.rows, key=lambda row: (row.slug, row.who if row.granted and row.who == ANYONE else "")
        ):
            alike = list(run)
            shown += [(row.who, row.where, row.answer) for row in alike[:most]]
            if len(alike) > most:
                shown.append(("...", f"and {len(alike) - most} more", alike[0].answer))
        who = max(len(row[0]) for row in shown)
        where = max(len(row[1]) for row in shown)
        return [f"{one:<{who}}  {two:<{where}}  {three}" for one, two, three in shown]


def relay_matrix(rules: Rules) -> Matrix:
    """The matrix of the rules as they are; with the relay option off its deferrals show."""
    return Matrix((*_our_domains(rules), *_our_aliases(rules), *_elsewhere(rules), *_labs(rules)))


def _our_domains(rules: Rules) -> Iterator[Row]:
    stranger = Standing(Role.RELAY, Client(outsider(rules), None))
    listed = "" if isinstance(rules.recipients, NoList) else " (listed recipients)"
    for pattern in (*rules.patterns(Place.LOCAL), *rules.patterns(Place.RELAY)):
        yield _row(rules, ANYONE, pattern_text(pattern) + listed, stranger, Path(b"postmaster", _domain_of(pattern)))
    yield _row(rules, ANYONE, "<postmaster>", stranger, POSTMASTER)
    ours = next(iter(rules.domains.patterns), None)
    if ours is None:
        return
    if listed and isinstance(rules.recipients, RecipientList) and not rules.recipients.domains:
        nobody = Path(b"no-such-recipient-in-any-list", _domain_of(ours))
        yield _row(rules, ANYONE, "other recipients of these", stranger, nobody)
    yield _row(rules, "strangers", "routes in a local part (a%b@...)", stranger, Path(TRICKS[0], _domain_of(ours)))


def _our_aliases(rules: Rules) -> Iterator[Row]:
    """Aliases that lead out of here: set by the configuration, but whoever writes to them makes us relay."""
    for key, ends in alias_ends(rules).items():
        for end in ends:
            yield Row(f"mail for {key}", end, granted=True, slug="forwarding", answer="forwarded: set in [aliases]")


def alias_ends(rules: Rules) -> dict[str, tuple[str, ...]]:
    """For each alias that leads elsewhere: where to."""
    found = {}
    local = next((pattern for pattern in rules.patterns(Place.LOCAL) if pattern[0] != "*"), "")
    keys = [(key, key) for key in rules.aliases.addresses]
    keys += [(name, f"{name}@{_domain_of(local)}" if local else f"{name}@") for name in rules.aliases.names]
    for shown, key in keys:
        local_part, _, domain = key.rpartition("@")
        ends = rules.aliases.follow(Path(local_part.encode("utf-8", "surrogateescape"), domain), rules.bears_names)
        if not isinstance(ends, Ring):
            away = tuple(str(end) for end in ends if not rules.is_local(end))
            if away:
                found[shown] = away
    return found


def _elsewhere(rules: Rules) -> Iterator[Row]:
    away = Path(b"anyone", third_party(rules))
    relay = [client for client in clients(rules) if not isinstance(client.address, Unknown)]
    outside = Client(outsider(rules), None)
    if any(client.network is None and not client.is_excepted for client in relay):
        yield _row(rules, "strangers", ELSEWHERE, Standing(Role.RELAY, outside), away)
    unknown = Client(Unknown.NOT_LEARNABLE, None)
    yield _row(rules, "clients of unknown address", ELSEWHERE, Standing(Role.RELAY, unknown), away)
    for client in relay:
        if client.is_excepted:
            yield _row(rules, f"{client.address} (named a stranger)", ELSEWHERE, Standing(Role.RELAY, client), away)
    for client in relay:
        if client.network is not None and not client.is_excepted:
            yield _row(rules, network_text(client.network), ELSEWHERE, Standing(Role.RELAY, client), away)
    yield _row(rules, "logged-in users", ELSEWHERE, Standing(Role.SUBMISSION, outside, login="a user"), away)
    yield _row(rules, "users of this machine", ELSEWHERE, Standing(Role.LOCAL, unknown, local_uid=1000), away)
    yield _row(rules, "submission without a login", "anywhere", Standing(Role.SUBMISSION, outside), away)


def _labs(rules: Rules) -> Iterator[Row]:
    """Each lab's window: who is inside, with each destination, and everyone else."""
    for lab in rules.labs:
        around = msgspec.structs.replace(rules, trusted_networks=lab.networks)
        now = lab.ends_at - 1
        for client in clients(around):
            if client.network is None or client.is_excepted:
                continue
            who = f"{network_text(client.network)} at the lab {lab.name}"
            for pattern in lab.destinations.patterns:
                path = Path(b"anyone", _domain_of(pattern))
                answer = decide(Facts(Role.LAB, client.address, path, lab=lab.name, now=now), rules)
                words = f"open, on purpose, until {lab.until}"
                yield _answer_row(who, pattern_text(pattern), answer, words)
            away = Facts(Role.LAB, client.address, Path(b"anyone", third_party(rules)), lab=lab.name, now=now)
            yield _answer_row(who, ELSEWHERE, decide(away, rules))
        some = Path(b"anyone", _domain_of(next(iter(lab.destinations.patterns))))
        stranger = Facts(Role.LAB, outsider(around), some, lab=lab.name, now=now)
        yield _answer_row(f"strangers at the lab {lab.name}", "anywhere", decide(stranger, rules))


_GRANTED = {
    "local-delivery": "delivered here",
    "relay-domain": "relayed: relay domain",
    "trusted-network": "relayed: trusted network",
    "authenticated-user": "relayed: login",
    "local-user": "relayed: local user",
}


def _row(rules: Rules, who: str, where: str, standing: Standing, path: Path) -> Row:
    return _answer_row(who, where, decide(standing.facts(path), rules))


def _answer_row(who: str, where: str, answer: Decision, granted: str = "") -> Row:
    """`granted`: the words for a grant, where its kind's own do not do."""
    if isinstance(answer, Grant):
        words = granted or _GRANTED.get(answer.kind, f"granted: {answer.kind}")
        return Row(who, where, granted=True, slug=answer.kind, answer=words)
    if isinstance(answer, Need):
        return Row(who, where, granted=False, slug="need", answer=f"refused until the {answer.fact} is known")
    verb = "deferred" if isinstance(answer, Deferral) else "refused"
    return Row(
        who,
        where,
        granted=False,
        slug=answer.reason.slug,
        answer=f"{verb}: {answer.reply.code} {answer.reply.enhanced}",
    )


def pattern_text(pattern: str) -> str:
    """A domain pattern in words."""
    if pattern == "*":
        return "every other domain"
    return f"all below {pattern[1:]}" if pattern.startswith(".") else pattern


def _domain_of(pattern: str) -> str:
    """A domain whose nearest pattern this is, most often."""
    if pattern == "*":
        return "third-party.example"
    return f"any{pattern}" if pattern.startswith(".") else pattern


def matrix_changes(old: Rules, new: Rules) -> list[str]:
    """What changes for whom when `new` takes the place of `old`, one sentence each, what is opened first; [] for nothing."""
    return [
        *_network_changes(old, new),
        *_domain_changes(old, new),
        *_exception_changes(old, new),
        *_alias_changes(old, new),
        *_recipient_changes(old, new),
        *_limit_changes(old, new),
        *_lab_changes(old, new),
    ]


def _network_changes(old: Rules, new: Rules) -> Iterator[str]:
    before, after = old.trusted_networks.networks, new.trusted_networks.networks
    all_before, all_after = NetworkSet(before).collapsed(), NetworkSet(after).collapsed()
    for network in after:
        if not all_before.covers(network):
            already = [one for one in all_before.networks if NetworkSet([network]).covers(one)]
            yield f"{network_text(network)} may now relay anywhere{_except(already, ' could before')}"
    for network in before:
        if not all_after.covers(network):
            kept = [one for one in all_after.networks if NetworkSet([network]).covers(one)]
            yield f"{network_text(network)} may no longer relay anywhere{_except(kept, ' still may')}"


def _except(networks: list[Network], what: str) -> str:
    return f" ({', '.join(map(network_text, networks))}{what})" if networks else ""


def _domain_changes(old: Rules, new: Rules) -> Iterator[str]:
    before, after = old.domains.patterns, new.domains.patterns
    verbs = {Place.LOCAL: "is now delivered here", Place.RELAY: "is now relayed"}
    for pattern, found in after.items():
        if pattern not in before:
            yield f"anyone may now send to {pattern_text(pattern)} ({found.place} domain)"
        elif before[pattern].place is not found.place:
            yield f"mail for {pattern_text(pattern)} {verbs[found.place]}"
    for pattern in before:
        if pattern not in after:
            yield f"strangers may no longer send to {pattern_text(pattern)}"


def _exception_changes(old: Rules, new: Rules) -> Iterator[str]:
    before, after = old.gateways_as_strangers, new.gateways_as_strangers
    for address in sorted(before - after, key=str):
        if address in new.trusted_networks:
            yield f"{address} may now relay anywhere (no longer named in gateways_as_strangers)"
    for address in sorted(after - before, key=str):
        if address in old.trusted_networks:
            yield f"{address} may no longer relay anywhere (named in gateways_as_strangers)"


def _alias_changes(old: Rules, new: Rules) -> Iterator[str]:
    before, after = alias_ends(old), alias_ends(new)
    for key, ends in after.items():
        if added := [end for end in ends if end not in before.get(key, ())]:
            yield f"mail for {key} is now forwarded to {', '.join(added)}"
    for key, ends in before.items():
        if removed := [end for end in ends if end not in after.get(key, ())]:
            yield f"mail for {key} is no longer forwarded to {', '.join(removed)}"
    if old.postmaster != new.postmaster:
        yield f"mail for <postmaster> now goes to {new.postmaster}"


def _recipient_changes(old: Rules, new: Rules) -> Iterator[str]:
    before, after = old.recipients, new.recipients
    if isinstance(after, NoList):
        if not isinstance(before, NoList):
            yield "every recipient of our domains is now taken as valid: the list of recipients is gone"
        return
    if isinstance(before, NoList):
        yield f"the only valid recipients of our domains are now those of a list ({_count(_entries(after))})"
        return
    added, removed = _entries(after) - _entries(before), _entries(before) - _entries(after)
    if added:
        yield f"{_count(added)} may now be written to: {_some(added)}"
    if removed:
        yield f"{_count(removed)} may no longer be written to: {_some(removed)}"


def _entries(listed: RecipientList) -> frozenset[str]:
    return listed.addresses | listed.names | {f"@{domain}" for domain in listed.domains}


def _count(entries: frozenset[str]) -> str:
    return f"{len(entries)} {'recipient' if len(entries) == 1 else 'recipients'}"


def _some(entries: frozenset[str], most: int = 5) -> str:
    shown = sorted(entries)[:most]
    return ", ".join(shown) + (f" and {len(entries) - most} more" if len(entries) > most else "")


def _lab_changes(old: Rules, new: Rules) -> Iterator[str]:
    before = {lab.name: lab for lab in old.labs}
    for lab in new.labs:
        earlier = before.pop(lab.name, None)
        if earlier is None or (earlier.bounds, earlier.until) != (lab.bounds, lab.until):
            yield f"the lab on {lab.name} is now open, on purpose, {lab.bounds}, until {lab.until}"
    for name in before:
        yield f"the lab on {name} is closed"


def _limit_changes(old: Rules, new: Rules) -> Iterator[str]:
    if old.recipients_stranger != new.recipients_stranger:
        yield f"strangers may now name {new.recipients_stranger} recipients at once instead of {old.recipients_stranger}"
    if old.recipients_trusted != new.recipients_trusted:
        yield (
            f"clients that may relay may now name {new.recipients_trusted} recipients at once instead of {old.recipients_trusted}"
        )
    if old.relay_enabled != new.relay_enabled:
        yield (
            "relaying is now on" if new.relay_enabled else "relaying is now off: only delivery to local domains is left"
        )
