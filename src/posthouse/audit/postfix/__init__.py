"""Postfix: main.cf, master.cf with its overrides, and the restriction lists in the order in which smtpd(8) asks them.

The files are read for their lines, and postconf(1), where there is one, for what is in force. Then one stranger of every
class that the lists and tables tell apart is walked through every smtpd that strangers reach, with every kind of recipient.
What the configuration leaves to a server, a policy service or a file that can't be read stays unknown.
"""

from pathlib import Path

from posthouse.audit.crowd import blocks, too_many
from posthouse.audit.finding import CannotTell, Closed, Counterexample, Finding, Open, existing
from posthouse.audit.postfix.authority import trusts_public_authorities
from posthouse.audit.postfix.defaults import DEFAULTS
from posthouse.audit.postfix.door import Door, doors
from posthouse.audit.postfix.doubt import find_doubts
from posthouse.audit.postfix.inquiry import Answers, ask_door
from posthouse.audit.postfix.master import Service, read_master
from posthouse.audit.postfix.opening import Tables
from posthouse.audit.postfix.place import Place, Stop
from posthouse.audit.postfix.postconf import Effective, ask_postconf
from posthouse.audit.postfix.resolver import Resolver
from posthouse.audit.postfix.settings import Settings, read_main
from posthouse.audit.postfix.smtpd import Smtpd
from posthouse.audit.postfix.stranger import THIRD_PARTY
from posthouse.policy.gateways import Gateway

_NO_DOORS = "no smtpd of this configuration listens on the network"
_ONLY_LOOPBACK = "every listener is on loopback: judged as if strangers could reach it"


def examine(path: Path, gateways: tuple[Gateway, ...]) -> Finding:
    """The finding for a configuration directory or its main.cf. AuditError when it can't be used."""
    main = existing(path, names=("main.cf",))
    audit = _Audit(main, gateways)
    return audit.finding()


class _Audit:
    """One configuration: read once, asked at each door."""

    def __init__(self, main: Path, gateways: tuple[Gateway, ...]) -> None:
        self._gateways = gateways
        explicit = read_main(main)
        self._effective = ask_postconf(main.parent)
        defaults = {"mynetworks": "", **_of_this_machine(), **DEFAULTS}
        if self._effective is not None:
            defaults |= self._effective.parameters
        self._settings = Settings(main, explicit, defaults)
        self._services = read_master(existing(main.with_name("master.cf")))
        self._tables = Tables(self._settings)
        self._resolver = Resolver(self._settings, self._services, self._tables)
        self._answers = Answers({}, {})
        self._doubts: dict[str, None] = {}
        self._is_loopback_only = False

    def finding(self) -> Finding:
        """Closed, open, or not to be told."""
        for door in self._doors():
            self._ask(door)
        doubts = (*self._doubts, *self._tables.doubts)
        openings = tuple(self._answers.openings.values())
        if openings:
            return Open(openings[0], self._rests_on(), doubts, openings[1:])
        if self._answers.stops:
            stops = tuple((place.file, place.line, words) for place, words in self._answers.stops.items())
            return CannotTell(*stops[0], self._rests_on(), doubts, stops[1:])
        return Closed(self._rests_on(), doubts)

    def _doors(self) -> list[Door]:
        """Those that strangers reach; where there are only loopback ones, those."""
        found = doors(self._services, self._settings)
        outside = [door for door in found if not door.is_loopback]
        if not found:
            self._doubts[_NO_DOORS] = None
        elif not outside:
            self._is_loopback_only = True
        return outside or found

    def _ask(self, door: Door) -> None:
        smtpd = Smtpd(door.service, self._settings, self._resolver, self._tables)
        for doubt in find_doubts(smtpd, door, self._gateways):
            self._doubts[doubt] = None
        if not smtpd.is_complete():
            return
        public = trusts_public_authorities(smtpd.settings) if smtpd.asks_certificate else False
        answers = ask_door(door, smtpd, trusts_public_authorities=public is not False)
        if isinstance(public, Stop) and answers.openings:
            known = ask_door(door, smtpd, trusts_public_authorities=False)
            unread = Answers({}, {public.place: public.words, **answers.stops})
            answers = known if known.openings else unread
        self._take(answers)
        self._mind_networks(door, smtpd)
        if smtpd.settings.text("smtpd_command_filter"):
            place = smtpd.settings.place("smtpd_command_filter")
            self._answers.stops[place] = "smtpd_command_filter rewrites what clients say, which is not followed here"

    def _take(self, answers: Answers) -> None:
        for place, opening in answers.openings.items():
            self._answers.openings.setdefault(place, opening)
        for place, words in answers.stops.items():
            self._answers.stops.setdefault(place, words)

    def _mind_networks(self, door: Door, smtpd: Smtpd) -> None:
        """Networks that together are more than anyone can know; and those that another machine would compute."""
        if not smtpd.settings.is_said("mynetworks"):
            self._mind_style(smtpd)
        listed = smtpd.mynetworks.networks()
        uses = {one.text.lower() for tokens in (*smtpd.lists.values(), *smtpd.classes.values()) for one in tokens}
        if "permit_mynetworks" not in uses:
            return
        held = [network for network, _ in listed]
        granted = [block for block in blocks(held) if any(block.example() in network for network in held)]
        member = too_many(granted)
        if member is None or self._answers.openings:
            return
        place = next((place for network, place in listed if member in network), smtpd.settings.place("mynetworks"))
        words = "Mynetworks hold more public addresses than anyone can know; name your own networks only."
        self._answers.openings[place] = Counterexample(
            client=str(member),
            reverse_path="someone@stranger.example",
            forward_path=THIRD_PARTY,
            file=place.file,
            line=place.line,
            words=words,
            listener=door.title,
        )

    def _mind_style(self, smtpd: Smtpd) -> None:
        style = smtpd.settings.text("mynetworks_style").lower()
        home = self._effective.directory if self._effective else ""
        if style in ("subnet", "class") and str(self._settings.main.parent) != home:
            place = smtpd.settings.place("mynetworks_style")
            self._answers.stops.setdefault(
                place,
                f"mynetworks_style = {style} trusts the networks of the machine that runs it, which are not written here; "
                f"set mynetworks, or run this check there",
            )

    def _rests_on(self) -> str:
        main = self._settings.main
        asked = f"postconf of Postfix {self._effective.version}" if self._effective else "Postfix's built-in defaults"
        words = f"{main}, master.cf beside it and {asked}"
        return f"{words}; {_ONLY_LOOPBACK}" if self._is_loopback_only else words


def _of_this_machine() -> dict[str, str]:
    """What Postfix computes from the machine, where postconf can't be asked."""
    import socket  # noqa: PLC0415 - only for a name

    name = socket.gethostname() or "localhost"
    full = name if "." in name else f"{name}.localdomain"
    return {"myhostname": full, "mydomain": full.partition(".")[2]}


def overrides_agree(services: list[Service], effective: Effective) -> bool:
    """Whether our reading of master.cf and postconf's are one."""
    ours = {
        (service.name, service.kind, name): override.value
        for service in services
        for name, override in service.overrides.items()
    }
    return ours == effective.overrides


__all__ = ["Place", "examine", "overrides_agree"]
