"""From the answers at all doors to one finding: an opening counts whatever else is unknown."""

from posthouse.audit.crowd import Block, too_many
from posthouse.audit.finding import CannotTell, Closed, Counterexample, Finding, Open
from posthouse.audit.postfix.authority import trusts_public_authorities
from posthouse.audit.postfix.configuration import Configuration
from posthouse.audit.postfix.door import Door
from posthouse.audit.postfix.doubt import find_doubts
from posthouse.audit.postfix.inquiry import Answers, ask_door
from posthouse.audit.postfix.oracle import Oracle
from posthouse.audit.postfix.place import Stop
from posthouse.audit.postfix.smtpd import Smtpd
from posthouse.audit.postfix.stranger import Stranger
from posthouse.audit.postfix.walk import Walk
from posthouse.policy.gateways import Gateway
from posthouse.policy.networks import NetworkSet

_NO_DOORS = "no smtpd of this configuration listens on the network"
_ONLY_LOOPBACK = "every listener is on loopback: judged as if strangers could reach it"


class Conclusion:
    """One configuration asked at each of its doors."""

    def __init__(self, configuration: Configuration, gateways: tuple[Gateway, ...]) -> None:
        self._configuration = configuration
        self._gateways = gateways
        self._answers = Answers({}, {})
        self._doubts: dict[str, None] = {}
        self._is_loopback_only = False

    def finding(self) -> Finding:
        """Closed, open, or not to be told."""
        found = self._found()
        doubtful = self._configuration.tables.doubtful
        if not isinstance(found, Open) or not doubtful:
            return found
        self._configuration.close_doubtful_tables()
        without = Conclusion(self._configuration, self._gateways)._found()
        if isinstance(without, Open):
            return without
        known = f"; where it is installed, it is open: {found.counterexample.words.rstrip('.')}"
        stops = tuple((place.file, place.line, words + known) for place, words in doubtful.items())
        return CannotTell(*stops[0], found.rests_on, found.doubts, stops[1:])

    def _found(self) -> Finding:
        for door in self._doors():
            self._ask(door)
        doubts = (*self._doubts, *self._configuration.tables.doubts)
        openings = tuple(self._answers.openings.values())
        if openings:
            return Open(openings[0], self._rests_on(), doubts, openings[1:])
        if self._answers.stops:
            stops = tuple((place.file, place.line, words) for place, words in self._answers.stops.items())
            return CannotTell(*stops[0], self._rests_on(), doubts, stops[1:])
        return Closed(self._rests_on(), doubts)

    def _doors(self) -> list[Door]:
        """Those that strangers reach; where there are only loopback ones, those."""
        found = self._configuration.doors()
        outside = [door for door in found if not door.is_loopback]
        if not found:
            self._doubts[_NO_DOORS] = None
        self._is_loopback_only = bool(found) and not outside
        return outside or found

    def _ask(self, door: Door) -> None:
        smtpd = self._configuration.smtpd(door)
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
        uses = {one.text.lower() for tokens in (*smtpd.lists.values(), *smtpd.classes.values()) for one in tokens}
        if "permit_mynetworks" not in uses:
            return
        if not smtpd.settings.is_said("mynetworks"):
            self._mind_style(smtpd)
        listed = smtpd.mynetworks.networks()
        held = NetworkSet(network for network, _ in listed).collapsed().networks
        member = too_many([Block(one.version, int(one.network_address), int(one.broadcast_address)) for one in held])
        if member is None or self._answers.openings:
            return
        stranger = Stranger(client=str(member))
        if self._configuration.tables.unopened and not Walk(smtpd, stranger, Oracle([])).outcome().is_accepted:
            return
        place = next((place for network, place in listed if member in network), smtpd.settings.place("mynetworks"))
        self._answers.openings[place] = Counterexample(
            client=stranger.client,
            reverse_path=stranger.reverse_path,
            forward_path=stranger.forward_path,
            file=place.file,
            line=place.line,
            words="mynetworks holds more public addresses than anyone can know; name your own networks only.",
            listener=door.title,
        )

    def _mind_style(self, smtpd: Smtpd) -> None:
        style = smtpd.settings.text("mynetworks_style").lower()
        if style in ("subnet", "class") and not self._configuration.is_at_home:
            self._answers.stops.setdefault(
                smtpd.settings.place("mynetworks_style"),
                f"mynetworks_style = {style} trusts the networks of the machine that runs it, which are not written here; "
                f"set mynetworks, or run this check there",
            )

    def _rests_on(self) -> str:
        effective = self._configuration.effective
        asked = f"postconf of Postfix {effective.version}" if effective else "Postfix's built-in defaults"
        words = f"{self._configuration.main}, master.cf beside it and {asked}"
        return f"{words}; {_ONLY_LOOPBACK}" if self._is_loopback_only else words
