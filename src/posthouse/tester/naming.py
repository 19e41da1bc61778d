"""What the placeholders of the cases stand for in one test: the host's names, the tester's, and the token of each case."""

import re
import time

import msgspec

from posthouse.tester import echo
from posthouse.tester.case import Case, Names
from posthouse.tester.dialogue import Dialogue
from posthouse.tester.message import Tester, probe_message
from posthouse.tester.report import Target
from posthouse.tester.token import Purpose, Token, TokenKey, mint
from posthouse.tester.ways import Said

TOKEN_SECONDS = 3 * 86400.0
"""How long a probe may be on its way."""

_host_name = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+").match
_first_name = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63}){1,8}").match


class NamingSettings(msgspec.Struct, frozen=True):
    """Who tests and through whom. `key` None: no collector takes part, and `third_party` gets the probes as it is."""

    tester: Tester
    tester_local: str
    tester_domain: str
    third_party: str
    test_id: int
    key: TokenKey | None
    nonce: str


class Namer:
    """Fills in cases. A case has the same tokens however often it is said, or no greylist would ever let it pass."""

    def __init__(self, target: Target, settings: NamingSettings) -> None:
        self.hello_name = settings.tester.name
        self.doubt = ""
        """Why the echo could not be said; "" when it could, or was not wanted."""
        self._target = target
        self._settings = settings
        self._tokens: dict[tuple[int, Purpose], str] = {}
        self._is_echo_due = bool(settings.nonce)

    def come_from(self, local_address: str) -> None:
        """The address that the test comes from: it goes into the echo, if one is wanted."""
        if not self._is_echo_due:
            return
        self._is_echo_due = False
        settings = self._settings
        if echo.may_vouch(local_address, self._target.address):
            self.hello_name = echo.hello_name(settings.nonce, local_address, settings.tester.name)
        else:
            self.doubt = "the tester has a private address, so the address that the host saw could not be compared"

    def make_ready(self, case: Case, dialogue: Dialogue) -> Said:
        """The case with its names, its tokens and its message."""
        names = self.names(case, dialogue)
        settings = self._settings
        message = probe_message(case, names, settings.tester, str(self._target), settings.test_id, time.time())
        return Said(case, names, message)

    def names(self, case: Case, dialogue: Dialogue) -> Names:
        """What the placeholders of a case stand for, as far as the host has said who it is."""
        settings, target = self._settings, self._target
        name = self._target_name(dialogue)
        domain = target.domain or (name.partition(".")[2] if name.count(".") > 1 else name)
        third_local, _, third_domain = settings.third_party.rpartition("@")
        return Names(
            target_domain=domain,
            target_name=name,
            target_address=f"IPv6:{target.address}" if ":" in target.address else target.address,
            third_local=self._token(case, Purpose.BOUNCE if case.notice else Purpose.PROBE) or third_local,
            third_domain=third_domain,
            tester_local=self._tester_local(case, third_domain) or settings.tester_local,
            tester_domain=settings.tester_domain,
            tester_name=self.hello_name,
        )

    def _target_name(self, dialogue: Dialogue) -> str:
        """What the host is called: by the user, by itself, or by nobody."""
        if is_host_name(self._target.name) and self._target.name != self._target.address:
            return self._target.name
        for reply in (dialogue.hello_reply, dialogue.greeting):
            found = _first_name(reply.text) if reply is not None else None
            if found:
                return found.group()
        return "localhost"

    def _tester_local(self, case: Case, third_domain: str) -> str:
        """Notices about a probe come to the collector too, where the tester's own mail does."""
        return self._token(case, Purpose.BOUNCE) if self._settings.tester_domain == third_domain else ""

    def _token(self, case: Case, purpose: Purpose) -> str:
        settings = self._settings
        if settings.key is None:
            return ""
        slot = case.number, purpose
        if slot not in self._tokens:
            token = Token(purpose, settings.test_id, case.number, time.time() + TOKEN_SECONDS)
            self._tokens[slot] = mint(settings.key, token)
        return self._tokens[slot]


def is_host_name(text: str) -> bool:
    """A name with a dot, fit for SNI."""
    return _host_name(text) is not None
