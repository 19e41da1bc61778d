"""Every class of stranger asked at one door: the openings found, and what stood in the way of an answer."""

import itertools
from collections.abc import Iterator

import msgspec

from posthouse.audit.finding import Counterexample
from posthouse.audit.postfix.door import Door
from posthouse.audit.postfix.oracle import Oracle, TooManyReadings, deciding, readings
from posthouse.audit.postfix.outcome import Outcome, Permit
from posthouse.audit.postfix.place import Place, ServerError, Unopened
from posthouse.audit.postfix.resolver import Class, Resolved
from posthouse.audit.postfix.smtpd import Smtpd, Stage
from posthouse.audit.postfix.stranger import Stranger
from posthouse.audit.postfix.strangers import claimed, is_strangers, strangers
from posthouse.audit.postfix.walk import Walk

MOST_WALKS = 60_000
_MOST_OPENINGS = 12
_ENGLISH = ("an", "it", "nothing", "the", "whoever")


class Answers(msgspec.Struct):
    """What one door gave: openings by the place that let them through, stops by theirs; how many mails were walked."""

    openings: dict[Place, Counterexample]
    stops: dict[Place, str]
    walks: int = 0


class Relayed(msgspec.Struct, frozen=True):
    """How a mail that was accepted leaves for where the stranger wants it; `words` for people."""

    words: str
    place: Place | None = None


def ask_door(door: Door, smtpd: Smtpd, *, trusts_public_authorities: bool) -> Answers:
    """All strangers at one door, and those that they can pose as."""
    answers = Answers({}, {})
    for stranger in strangers(smtpd, trusts_public_authorities=trusts_public_authorities):
        _ask(door, smtpd, stranger, answers)
        if answers.walks > MOST_WALKS:
            words = f"more than {MOST_WALKS} kinds of strangers are told apart here; not all of them were asked"
            answers.stops[door.service.place] = words
        if answers.walks > MOST_WALKS or len(answers.openings) >= _MOST_OPENINGS:
            break
    for poser in _posers(door, smtpd, trusts_public_authorities=trusts_public_authorities):
        _ask(door, smtpd, poser, answers)
    return answers


def _posers(door: Door, smtpd: Smtpd, *, trusts_public_authorities: bool) -> Iterator[Stranger]:
    """Strangers who claim to be trusted, where they are believed."""
    everyone = strangers(smtpd, trusts_public_authorities=trusts_public_authorities)
    plain: dict[tuple[str, bool], Stranger] = {}
    for one in itertools.islice(everyone, MOST_WALKS):
        if one.hello:
            plain.setdefault((one.client, one.is_encrypted), one)
    for one in plain.values():
        if door.proxy is not None:
            yield from claimed(smtpd, one, "a PROXY header")
        believed = smtpd.xclient_hosts.match_host(one.name, one.client)
        if believed and not isinstance(believed, Unopened):
            yield from claimed(smtpd, one, "XCLIENT")


def _ask(door: Door, smtpd: Smtpd, stranger: Stranger, answers: Answers) -> None:
    """Open when the mail leaves under every reading of what is unknown; not to be told when it does under some."""

    def evaluate(oracle: Oracle) -> tuple[Relayed, Outcome] | None:
        answers.walks += 1
        outcome = Walk(smtpd, stranger, oracle).outcome()
        try:
            relayed = _relayed(smtpd, stranger, outcome, oracle)
        except ServerError:
            return None  # cleanup doesn't take it, or the queue keeps it
        return None if relayed is None else (relayed, outcome)

    let_in: tuple[tuple[Relayed, Outcome] | None, Oracle] | None = None
    is_refused = False
    oracle = Oracle([])
    try:
        for answer, oracle in readings(evaluate):
            if answer is not None:
                let_in = (answer, oracle)
            is_refused |= answer is None
            if is_refused and (answers.stops or let_in):
                break  # not open under every reading; and that one can't tell is known already, or is known now
    except TooManyReadings:
        is_refused, let_in = True, let_in or (None, oracle)  # neither is proven
    if let_in is None:
        return
    if is_refused or let_in[0] is None:
        stops = let_in[1].stops if let_in[0] is None else deciding(evaluate, let_in[1])
        for stop in stops:
            answers.stops.setdefault(stop.place, stop.words)
        return
    found = _counterexample(door, smtpd, stranger, *let_in[0])
    if stranger.claim and door.proxy is not None and door.is_private and not door.is_loopback:
        words = f"{found.words} It listens on a private address only: can others than the proxy reach it?"
        answers.stops.setdefault(Place(found.file, found.line), words)
    else:
        answers.openings.setdefault(Place(found.file, found.line), found)


def _relayed(smtpd: Smtpd, stranger: Stranger, outcome: Outcome, oracle: Oracle) -> Relayed | None:
    """How the mail leaves for where the stranger wants it; None when it was refused, kept for us or thrown away."""
    if not outcome.is_accepted or outcome.is_dropped or outcome.recipient is None:
        return None
    resolver = smtpd.resolver
    going = [
        one
        for one in resolver.destinations(stranger.forward_path, oracle)
        if resolver.transport(one, oracle)[0] not in ("discard", "error", "retry")
    ]
    if is_strangers(outcome.recipient.domain):
        return _for_his_domain(outcome.recipient) if going else None
    for one in going:
        if is_strangers(one.domain):
            entry = outcome.recipient.hit
            return Relayed(
                f"an alias leads on to {one.address}, which the stranger chose", entry.place if entry else None
            )
        if one.is_routed and one.kind in (Class.RELAY, Class.DEFAULT) and _names_third_party(one.address):
            return Relayed(
                f"the next hop for {one.domain} is handed {one.address}, a route that the stranger chose, and trusts this "
                f"server: set allow_untrusted_routing = no and resolve_dequoted_address = yes",
                smtpd.settings.place("allow_untrusted_routing") if smtpd.untrusted_routing else None,
            )
    return None


def _names_third_party(address: str) -> bool:
    return any(
        is_strangers(part) for part in address.replace("!", "@").replace("%", "@").split("@")[:-1] if "." in part
    )


def _for_his_domain(recipient: Resolved) -> Relayed:
    hit = recipient.hit
    if recipient.kind is Class.DEFAULT or hit is None:
        return Relayed("it is relayed to a domain that is not ours")
    kept = {
        Class.LOCAL: "mydestination, so mail for other people's domains is taken as if it were for this machine",
        Class.ALIAS: "virtual_alias_domains, so mail for other people's domains is taken as an alias of ours",
        Class.VIRTUAL: "virtual_mailbox_domains, so mail for other people's domains is taken as if we had its mailboxes",
        Class.RELAY: "relay_domains, so mail for other people's domains is relayed for anyone",
    }[recipient.kind]
    return Relayed(f"{recipient.domain} matches {hit.value} of {kept}; name only your own domains", hit.place)


def _counterexample(door: Door, smtpd: Smtpd, stranger: Stranger, relayed: Relayed, outcome: Outcome) -> Counterexample:
    place, why = _blame(smtpd, relayed, outcome)
    if stranger.claim and door.proxy is not None and "PROXY" in stranger.claim:
        place, why = door.proxy, f"whoever connects may send a PROXY header, and then {why}"
    elif stranger.claim:
        place = smtpd.settings.place("smtpd_authorized_xclient_hosts")
        why = f"smtpd_authorized_xclient_hosts lets strangers say who they are, and then {why}"
    client = stranger.claim or stranger.client
    if stranger.name != "unknown":
        client += f" (whose confirmed name is {stranger.name})"
    if stranger.is_certified:
        client += ", with a certificate of a public authority"
    elif stranger.has_certificate:
        client += ", with a certificate of its own making"
    return Counterexample(
        client=client,
        reverse_path=stranger.reverse_path,
        forward_path=stranger.forward_path,
        file=place.file,
        line=place.line,
        words=f"{_capital(why)}.",
        listener=door.title,
        hello=stranger.hello or "",
        over_tls=stranger.is_encrypted,
    )


def _blame(smtpd: Smtpd, relayed: Relayed, outcome: Outcome) -> tuple[Place, str]:
    """The line that let the mail through, and the sentence for it (no capital, no full stop)."""
    if relayed.place is not None:
        return relayed.place, relayed.words
    permits = [one for one in outcome.permits if one.stage in (Stage.RELAY, Stage.RECIPIENT)]
    permits.sort(key=lambda one: not _cuts_off_refusal(smtpd, one))
    if permits and permits[0].entry is not None and permits[0].restriction.text.lower() == "permit_mynetworks":
        entry = permits[0].entry
        words = f"mynetworks holds {entry.value}, so strangers count as ours; name your own networks only"
        return entry.place, f"{words}; {relayed.words}"
    if permits:
        return permits[0].restriction.place, f"{_says(permits[0])}; {relayed.words}"
    stage = Stage.RELAY if smtpd.lists[Stage.RELAY] else Stage.RECIPIENT
    words = f"nothing in {stage.value} refuses other people's domains; put reject_unauth_destination into it"
    return smtpd.settings.place(stage.value), f"{words}; {relayed.words}"


def _cuts_off_refusal(smtpd: Smtpd, permit: Permit) -> bool:
    """Whether the list would have gone on to a refusal."""
    names = [one.text.lower() for one in smtpd.lists[permit.stage]]
    return any(name.startswith(("reject", "defer")) for name in names) and permit.restriction.text.lower() != "permit"


def _says(permit: Permit) -> str:
    words = f"{permit.restriction.text} in {permit.stage.value} lets the stranger through"
    if permit.entry is not None and permit.entry.value:
        words += f" by {permit.entry.value} ({permit.entry.place})"
    if permit.restriction.text.lower() == "permit_mx_backup":
        words += ": anyone can name this server as a backup of his own domain; set permit_mx_backup_networks, or relay_domains"
    if permit.restriction.text.lower().startswith(("check_sender", "check_helo")):
        words += ", and what it looks at is the stranger's to choose; answer DUNNO there, or refuse before it"
    return words


def _capital(sentence: str) -> str:
    """A sentence begins with a capital, but not where a name of the configuration opens it."""
    return sentence[0].upper() + sentence[1:] if sentence.partition(" ")[0] in _ENGLISH else sentence
