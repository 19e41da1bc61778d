"""sendmail: its own rule sets, asked in address test mode about every kind of stranger; and what the text alone proves.

A configuration of rewriting rules can't be judged by reading. Where sendmail is installed it is asked; closed is said only
of a configuration whose rule sets are those that the stock features make, since then the questions are all there are.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec

from posthouse.audit.crowd import Block, blocks, gateway_doubts, too_many
from posthouse.audit.finding import CannotTell, Closed, Counterexample, Finding, Open, existing
from posthouse.audit.sendmail.ask import Answer, Question, Sendmail, find_sendmail
from posthouse.audit.sendmail.strangers import STRANGER, THIRD, claims, plain
from posthouse.audit.sendmail.text import Line, Text, entry_of, network_of, networks, read
from posthouse.policy.gateways import Gateway
from posthouse.policy.networks import Network

_NAMES = ("sendmail.cf", "sendmail.mc")
_BELIEVED = {
    "promiscuous_relay": "FEATURE(promiscuous_relay) lets everyone relay; remove it",
    "relay_local_from": "FEATURE(relay_local_from) believes a reverse-path, which anyone may write; remove it, or use AUTH",
}
"""Features that open by themselves."""


def examine(path: Path, gateways: tuple[Gateway, ...]) -> Finding:
    """The finding for a sendmail.cf, or its .mc, or the directory that holds one."""
    file = existing(path, names=_NAMES)
    text = read(file)
    sendmail = find_sendmail(file) if text.is_compiled else None
    version = sendmail.version() if sendmail is not None else ""
    doubts = gateway_doubts(_trusted(text), gateways)
    if sendmail is not None and not version:
        doubts = (*doubts, f"the sendmail here does not take the file: {sendmail.complaint()}")
        sendmail = None
    openings = list(_openings_in(text))
    if sendmail is None:
        return _by_text(file, text, openings, doubts)
    text, stale = _in_force(sendmail, text, file)
    return _by_asking(sendmail, version, file, text, list(_openings_in(text)), (*doubts, *stale))


def _in_force(sendmail: Sendmail, text: Text, file: Path) -> tuple[Text, tuple[str, ...]]:
    """Class R and the access table as sendmail has them, with the lines of their sources where those say the same.

    FEATURE(relay_entire_domain) adds the host's own domain, class m: of a host called example.org that is all of org.
    """
    known = {line.text.lower() for line in text.relay_domains}
    more = [Line(name, str(file), 0) for name in sendmail.members("R") if name.lower() not in known]
    entire = text.features.get("relay_entire_domain")
    if entire is not None:
        more += [Line(name, entire.file, entire.line) for name in sendmail.members("m") if name.lower() not in known]
    text = msgspec.structs.replace(text, relay_domains=(*text.relay_domains, *more))
    if text.access_table is None:
        return text, ()
    kind, path = text.access_table
    table = sendmail.table(kind, path)
    if table is None:
        return text, ()
    sources = {(entry.tag, entry.key.lower(), entry.value): entry for entry in text.access}
    entries = [entry for entry in (entry_of(line, f"{path}.db", 0) for line in table) if entry]
    found = tuple(sources.get((one.tag, one.key.lower(), one.value), one) for one in entries)
    unread = tuple(line for line in text.unread if "access table" not in line.text)
    text = msgspec.structs.replace(text, access=found, unread=unread)
    if sources and {(one.tag, one.key.lower(), one.value) for one in entries} != set(sources):
        return text, (f"the access table in force is not what {path} says now: run makemap",)
    return text, ()


def _by_text(file: Path, text: Text, openings: list[Counterexample], doubts: tuple[str, ...]) -> Finding:
    rests_on = f"the text of {file} alone"
    if openings:
        return Open(counterexample=openings[0], rests_on=rests_on, doubts=doubts, others=tuple(openings[1:]))
    words = (
        "sendmail's rules can't be judged by reading, and sendmail itself can't be asked here: run this as root where it "
        "is installed"
        if text.is_compiled
        else "this is the source; name the sendmail.cf that was made of it, on a machine with sendmail"
    )
    return CannotTell(file=str(file), line=0, words=words, rests_on=rests_on, doubts=doubts)


def _by_asking(
    sendmail: Sendmail, version: str, file: Path, text: Text, openings: list[Counterexample], doubts: tuple[str, ...]
) -> Finding:
    rests_on = f"{version} itself, asked by -bt and -bs about {file}"
    asked = list(_ask(sendmail, text, file))
    places = {(one.file, one.line) for one in asked}
    found = [*asked, *(one for one in openings if asked and (one.file, one.line) not in places)]
    if found:
        return Open(counterexample=found[0], rests_on=rests_on, doubts=doubts, others=tuple(found[1:]))
    stops = [*_stops(text, file), *_conversation(sendmail, file)]
    if openings and not asked:
        first = openings[0]
        stops.insert(
            0, (first.file, first.line, f"{first.words}; but sendmail itself refused, which is not understood")
        )
    if stops:
        (name, line, words), *others = stops
        return CannotTell(file=name, line=line, words=words, rests_on=rests_on, doubts=doubts, others=tuple(others))
    return Closed(rests_on=rests_on, doubts=doubts)


def _ask(sendmail: Sendmail, text: Text, file: Path) -> Iterator[Counterexample]:
    """One opening of each kind that sendmail's answers show."""
    around = blocks(networks(text))
    answers = sendmail.ask([plain(block) for block in around])
    granted = [block for block, answer in zip(around, answers, strict=True) if _is_relayed(answer)]
    address = too_many(granted)
    if address is not None:
        yield _counterexample(msgspec.structs.replace(plain(around[0]), address=address), text, file)
        if all(block in granted for block in around):
            return
    names = sendmail.members("w")
    seen: set[tuple[str, int]] = set()
    for answer in sendmail.ask(list(claims(text, names))):
        if _is_relayed(answer) and not _is_one_of(answer.question, granted, address is not None):
            found = _counterexample(answer.question, text, file, answer.onward)
            if (found.words, found.line) not in seen:
                seen.add((found.words, found.line))
                yield found


def _is_one_of(question: Question, granted: list[Block], is_open: bool) -> bool:
    """The address alone opens; what it claims adds nothing."""
    number = int(question.address)
    return is_open and any(b.version == question.address.version and b.first <= number <= b.last for b in granted)


def _is_relayed(answer: Answer) -> bool:
    domain = answer.onward.rpartition("@")[2].lower()
    is_third = domain == THIRD or domain.startswith("third-party.")
    return answer.is_complete and not answer.refusal and answer.is_remote and is_third


def _stops(text: Text, file: Path) -> Iterator[tuple[str, int, str]]:
    """Lines because of which a refusal of all questions proves nothing."""
    for line in text.own_rules:
        yield (
            line.file,
            line.line,
            f"a rule of your own may decide who relays ({line.text}); strangers were refused as far as asked",
        )
    for line in text.unread:
        yield line.file, line.line, line.text
    if "relay_based_on_MX" in text.features:
        line = text.features["relay_based_on_MX"]
        yield (
            line.file,
            line.line,
            "whoever names this host as an MX of his domain may relay to it; DNS decides, not this file",
        )
    if "proto" not in text.features:
        yield (
            str(file),
            0,
            "the rules are not those that sendmail's m4 files make, so no set of questions is known to be complete",
        )


def _conversation(sendmail: Sendmail, file: Path) -> Iterator[tuple[str, int, str]]:
    """A real session over a socket must agree with the rule sets."""
    question = Question(ip_address("127.0.0.2"), STRANGER, f"someone@{STRANGER}", f"someone@{THIRD}")
    (answer,) = sendmail.ask([question])
    reply = sendmail.converse(question)
    if reply.startswith("2") and not _is_relayed(answer):
        yield (
            str(file),
            0,
            f"in a session (-bs) sendmail says {reply} to a third party's address, which its rule sets refuse",
        )


def _counterexample(question: Question, text: Text, file: Path, onward: str = "") -> Counterexample:
    name, line, words = _because(question, text, file)
    if onward and "third-party." not in question.forward_path.rpartition("@")[2]:
        words = f"sendmail takes this for an own address and sends it to {onward}: {words}"
    client = str(question.address) + (f", whose name is {question.name}" if question.name else "")
    return Counterexample(
        client=client,
        reverse_path=question.reverse_path,
        forward_path=question.forward_path,
        hello=question.hello,
        over_tls=question.is_encrypted,
        file=name,
        line=line,
        words=words,
    )


def _because(question: Question, text: Text, file: Path) -> tuple[str, int, str]:
    """The line that most probably lets the stranger through; the file as a whole when none is known to."""
    sender = question.reverse_path.rpartition("@")[2].lower()
    for entry in text.relays("from", ""):
        if sender and entry.key.lower().strip("@") == sender:
            return (
                entry.file,
                entry.line,
                "a reverse-path gets RELAY, and anyone may write it; grant by Connect: or AUTH",
            )
    for one in _openings_in(text):
        is_about_sender = one.reverse_path != f"someone@{STRANGER}"
        if one.forward_path == question.forward_path and (not is_about_sender or sender != STRANGER):
            return one.file, one.line, one.words
    if text.own_rules:
        rule = text.own_rules[-1]
        words = f"a rule of your own lets a stranger relay ({rule.text}); let it fall through instead of saying OK"
        return rule.file, rule.line, words
    feature = text.features.get("loose_relay_check")
    if feature is not None and "%" in question.forward_path:
        return feature.file, feature.line, "FEATURE(loose_relay_check) does not look behind a percent sign; remove it"
    return str(file), 0, "sendmail's rule sets let this stranger relay; compare its features with the stock ones"


def _openings_in(text: Text) -> Iterator[Counterexample]:
    """What the text alone proves."""
    for name, words in _BELIEVED.items():
        line = text.features.get(name)
        if line is not None:
            sender = "root" if name == "relay_local_from" else f"someone@{STRANGER}"
            yield _by_line(line.file, line.line, words, reverse_path=sender)
    yield from _wide_domains(text)
    yield from _wide_networks(text)
    line = text.features.get("relay_mail_from")
    if line is not None:
        for entry in text.relays("from"):
            words = "FEATURE(relay_mail_from) believes a reverse-path, which anyone may write; remove it, or use AUTH"
            yield _by_line(entry.file, entry.line, words, reverse_path=f"someone@{entry.key.rpartition('@')[2]}")


def _wide_domains(text: Text) -> Iterator[Counterexample]:
    keys = [(line.text, line.file, line.line) for line in text.relay_domains]
    keys += [(entry.key, entry.file, entry.line) for entry in text.relays("", "to")]
    for key, name, number in keys:
        bare = key.strip(".")
        if bare.isalpha() and bare.lower() not in ("localhost", "localdomain"):
            words = f'"{key}" relays to a whole top-level domain; name the domains that you mean'
            yield _by_line(name, number, words, forward_path=f"someone@third-party.{bare.lower()}")


def _wide_networks(text: Text) -> Iterator[Counterexample]:
    granted = [Block(net.version, int(net.network_address), int(net.broadcast_address)) for net in _trusted(text)]
    address = too_many(granted)
    if address is None:
        return
    places = [(line.text, line.file, line.line) for line in text.relay_domains]
    places += [(entry.key, entry.file, entry.line) for entry in text.relays("", "connect")]
    for key, name, number in places:
        network = network_of(key)
        if network is not None and network.version == address.version and address in network:
            words = "the networks that may relay hold more than a /8 of public addresses; name those you know"
            yield msgspec.structs.replace(_by_line(name, number, words), client=str(address))
            return


def _trusted(text: Text) -> list[Network]:
    keys = [line.text for line in text.relay_domains] + [entry.key for entry in text.relays("", "connect")]
    return [network for network in map(network_of, keys) if network is not None]


def _by_line(file: str, line: int, words: str, *, reverse_path: str = "", forward_path: str = "") -> Counterexample:
    return Counterexample(
        client="203.0.113.9",
        reverse_path=reverse_path or f"someone@{STRANGER}",
        forward_path=forward_path or f"someone@{THIRD}",
        hello=STRANGER,
        file=file,
        line=line,
        words=words,
    )
