"""OpenSMTPD: the match rules of smtpd.conf in their order, asked about every kind of stranger that they tell apart.

smtpd itself can say whether a file is valid (`smtpd -nf`), not what it would do, so the rules are evaluated here, by the
meaning that its ruleset.c gives them. The first match decides; no match refuses.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from posthouse.audit.crowd import Block, gateway_doubts, too_many
from posthouse.audit.finding import CannotTell, Closed, Counterexample, Finding, Open, existing
from posthouse.audit.opensmtpd.lines import Unreadable, read_statements
from posthouse.audit.opensmtpd.rules import Ask, Configuration, Property, Rule, read
from posthouse.audit.opensmtpd.strangers import Crowd, Stranger
from posthouse.policy.gateways import Gateway

_ASK_SECONDS = 20.0


def examine(path: Path, gateways: tuple[Gateway, ...]) -> Finding:
    """The finding for a smtpd.conf or the directory that holds it."""
    file = existing(path, names=("smtpd.conf",))
    try:
        configuration = read(read_statements(file), file.parent)
    except Unreadable as error:
        return CannotTell(file=error.file, line=error.line, words=error.words, rests_on=str(file))
    if not (configuration.listeners or configuration.actions or configuration.rules):
        words = "it holds no listen, no action and no match, so it can hardly be what an OpenSMTPD runs on"
        return CannotTell(file=str(file), line=0, words=words, rests_on=str(file))
    crowd = Crowd(configuration)
    rests_on, doubts = _validity(file)
    doubts += _doubts(configuration, crowd, gateways)
    openings, unknown = _examine(crowd)
    if openings:
        return Open(counterexample=openings[0], rests_on=rests_on, doubts=doubts, others=tuple(openings[1:]))
    stops = [*unknown, *_proxied(configuration)]
    if stops:
        (name, line, words), *others = stops
        return CannotTell(file=name, line=line, words=words, rests_on=rests_on, doubts=doubts, others=tuple(others))
    return Closed(rests_on=rests_on, doubts=doubts)


def _examine(crowd: Crowd) -> tuple[list[Counterexample], list[tuple[str, int, str]]]:
    """One opening a rule, and the questions without an answer above which a stranger might be let through."""
    openings: dict[int, Counterexample] = {}
    unknown: dict[int, tuple[str, int, str]] = {}
    for who in crowd.strangers():
        granted, perhaps = _granted(crowd, who)
        # Several rules may trust a little each; together it may be everybody.
        everyone = [block for _, some in granted.values() for block in some]
        if too_many(everyone) is not None:
            _note_openings(openings, granted, who)
        elif too_many([*everyone, *(block for block, _ in perhaps)]) is not None:
            for _, ask in perhaps:
                unknown.setdefault(id(ask), (ask.word.file, ask.word.line, _why_unknown(ask)))
    return list(openings.values()), list(unknown.values())


Granted = dict[int, tuple[Rule, list[Block]]]
"""Blocks of addresses by the rule that lets them relay."""


def _granted(crowd: Crowd, who: Stranger) -> tuple[Granted, list[tuple[Block, Ask]]]:
    """What relays for sure, and what may, with the question that has no answer."""
    granted: Granted = {}
    perhaps: list[tuple[Block, Ask]] = []
    for block in crowd.blocks:
        meeting = crowd.meet(who, block)
        decided = _relays(crowd, meeting.rule)
        contrary = [ask for rule, ask in meeting.unknown if _relays(crowd, rule) is not decided]
        if contrary:
            perhaps.append((block, contrary[0]))
        elif decided and meeting.rule is not None:
            granted.setdefault(id(meeting.rule), (meeting.rule, []))[1].append(block)
    return granted, perhaps


def _note_openings(openings: dict[int, Counterexample], granted: Granted, who: Stranger) -> None:
    """Each rule that is too wide by itself; the widest when only all of them together are."""
    by_width = sorted(granted.values(), key=lambda pair: -sum(block.last - block.first for block in pair[1]))
    wide = [(rule, address) for rule, some in by_width if (address := too_many(some)) is not None]
    for rule, address in wide or [(by_width[0][0], by_width[0][1][0].example())]:
        openings.setdefault(id(rule), _counterexample(who, str(address), rule))


def _relays(crowd: Crowd, rule: Rule | None) -> bool:
    return rule is not None and rule.action != "" and crowd.configuration.actions[rule.action].is_relay


def _why_unknown(ask: Ask) -> str:
    table = ask.table
    if table is not None and table.why_unknown:
        return f"the table {table.name} decides here who may relay, and {table.why_unknown}"
    return (
        "a regular expression decides here who may relay, and it is not one that can be judged; list the names instead"
    )


def _counterexample(who: Stranger, address: str, rule: Rule) -> Counterexample:
    claims = [f"whose reverse zone says {who.host_name}"] if who.host_name and _asks(rule, Property.NAME) else []
    claims += [f"at the listener tagged {who.tag}"] if who.tag and _asks(rule, Property.TAG) else []
    why = [words for of, words in _BELIEVED.items() if _asks(rule, of)] or [_reason(rule)]
    return Counterexample(
        client=", ".join([address, *claims]),
        reverse_path=who.reverse_path,
        forward_path=who.forward_path,
        hello=who.hello,
        listener=who.tag,
        file=rule.word.file,
        line=rule.word.line,
        words=f'this rule lets a stranger relay: {"; ".join(why)}. Write "from local", "from src" with your networks, or "auth"',
    )


_BELIEVED = {
    Property.HELLO: "a name said in HELO is believed, and anyone may say it",
    Property.REVERSE_PATH: "a reverse-path is believed, and anyone may write it",
    Property.NAME: "the name that a client's own reverse zone gives it is believed",
    Property.TAG: "everyone who reaches the tagged listener may relay",
}


def _asks(rule: Rule, of: Property) -> bool:
    return any(ask.property is of for ask in rule.asks)


def _reason(rule: Rule) -> str:
    to_anywhere = any(ask.property is Property.DOMAIN and ask.table and "*" in ask.table.keys for ask in rule.asks)
    return "it holds for nearly all addresses" + ("" if to_anywhere else ", and its domains are anybody's")


def _proxied(configuration: Configuration) -> Iterator[tuple[str, int, str]]:
    for listener in configuration.listeners:
        if listener.is_proxied:
            words = (
                "anyone who comes to this listener says by a PROXY header which address it has; that only your proxy can "
                "come isn't written here"
            )
            yield listener.word.file, listener.word.line, words


def _doubts(configuration: Configuration, crowd: Crowd, gateways: tuple[Gateway, ...]) -> tuple[str, ...]:
    """Gateways inside the networks that may relay, and programs that may rewrite a recipient."""
    trusted = [
        network
        for rule in configuration.rules
        if _relays(crowd, rule)
        for ask in rule.asks
        if ask.property is Property.SOURCE and ask.table is not None and not ask.is_negated
        for network in crowd.trusted(ask)
        if network.prefixlen
    ]
    programs = tuple(
        f"{word.file}:{word.line}: a filter may rewrite recipients; what it makes of them isn't examined here"
        for word in configuration.filter_programs
    )
    return (*gateway_doubts(trusted, gateways), *programs)


def _validity(file: Path) -> tuple[str, tuple[str, ...]]:
    """What `smtpd -n` says of the file, where OpenSMTPD is installed: words for `rests_on`, and doubts."""
    program = shutil.which("smtpd")
    if program is None:
        return f"the rules of {file}; OpenSMTPD is not installed here to say whether it would start with them", ()
    try:
        done = subprocess.run(  # noqa: S603 - the machine's own smtpd, asked to read and do nothing
            [program, "-nf", str(file)], capture_output=True, text=True, check=False, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(file), (f"smtpd -n could not be asked: {error}",)
    said = " ".join((done.stderr or done.stdout).split())
    if "configuration OK" in said:
        return f"the rules of {file}, valid by smtpd -n", ()
    return f"the rules of {file}", (f"smtpd -n refuses the file here: {said[:300]}",)
