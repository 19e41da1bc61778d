"""An ACL as Exim runs it: statement by statement, the first that decides ends it, the end of the list denies (chapter 43).

What a stranger or the day decides (a sender that verifies, a host on no list, a rate not reached) is taken both ways. What
can't be judged is remembered: an acceptance behind it is an opening only if Exim itself says so.
"""

from collections.abc import Callable, Iterator

import msgspec

from posthouse.audit.exim.expansion import Chosen, Errs, Failed
from posthouse.audit.exim.lists import Lists
from posthouse.audit.exim.reading import Condition, Place, Statement, Text, Unclear, inline_acl
from posthouse.audit.exim.session import UNKNOWN, Session, Truth, truth

_DEEPEST = 12
_MOST_STEPS = 20_000
_MODIFIERS = frozenset(
    {"add_header", "continue", "control", "delay", "endpass", "log_message", "log_reject_target", "logwrite", "message"}
    | {"queue", "remove_header", "udpsend"}
)
_CHOICES = frozenset(
    {"decode", "dkim_signers", "dkim_status", "dmarc_status", "dnslists", "malware", "mime_regex", "ratelimit", "regex"}
    | {"seen", "spam", "spf", "spf_guess"}
)
"""Of content, reputation and time: a stranger can be on the right side of each."""
_GRANTING = ("accept", "discard")


class Doubt(msgspec.Struct, frozen=True):
    """A condition that could not be judged, and how it was taken on this way."""

    key: str
    is_held: bool
    place: Place
    words: str


Doubts = tuple[Doubt, ...]


class _Discarded(Exception):
    """An ACL that was asked by a condition discards the mail: that ends it all, whatever the statement goes on to ask."""


class Outcome(msgspec.Struct, frozen=True):
    """One way through an ACL, and what could not be judged on it. What is discarded is not accepted, though told 250."""

    is_accepted: bool
    place: Place
    session: Session
    doubts: Doubts = ()
    is_deferred: bool = False
    is_discarded: bool = False


RecipientVerifies = Callable[[Session], Truth]


class AclWalk:
    """Runs ACLs for strangers. `verifies` answers `verify = recipient`, by the routers."""

    def __init__(self, lists: Lists, verifies: RecipientVerifies) -> None:
        self.lists = lists
        self.verifies = verifies
        self.steps = 0

    def outcomes(self, name: str, session: Session, place: Place) -> list[Outcome]:
        """Every way through the ACL, those without doubt first. A doubt that decides nothing is none."""
        self.steps = 0
        found = list(self._run(Text(name, place), session, {}, (), 0))
        accepted = [one for one in found if one.is_accepted]
        if all(one.doubts for one in accepted) and _covers([one.doubts for one in accepted]):
            found = [msgspec.structs.replace(one, doubts=()) for one in accepted]
        return sorted(found, key=lambda one: (bool(one.doubts), not one.is_accepted))

    def _run(
        self, name: Text, session: Session, assumed: dict[str, Truth], doubts: Doubts, depth: int
    ) -> Iterator[Outcome]:
        statements = self.lists.configuration.acls.get(name.text) or inline_acl(name)
        if statements is None or depth > _DEEPEST:
            words = f"the ACL {name.text} is not one that can be followed here"
            yield Outcome(True, name.place, session, (*doubts, Doubt(name.text, True, name.place, words)))
            return
        yield from self._from(statements, 0, session, assumed, doubts, depth)

    def _from(
        self,
        statements: tuple[Statement, ...],
        at: int,
        session: Session,
        assumed: dict[str, Truth],
        doubts: Doubts,
        depth: int,
    ) -> Iterator[Outcome]:
        if at >= len(statements):
            last = statements[-1].place if statements else Place("", 0)
            yield Outcome(False, last, session, doubts)
            return
        statement = statements[at]
        try:
            for held, is_past_endpass, after, learnt, doubt in self._statement(statement, session, assumed, depth):
                self.steps += 1
                now = (*doubts, *doubt)
                decided = _decide(statement.verb, held, is_past_endpass)
                if self.steps > _MOST_STEPS:
                    words = "the ACL has too many ways through to judge"
                    yield Outcome(True, statement.place, session, (Doubt("", True, statement.place, words),))
                    return
                if decided is not None:
                    yield Outcome(
                        decided,
                        statement.place,
                        after,
                        now,
                        is_deferred=statement.verb == "defer",
                        is_discarded=held and statement.verb == "discard",
                    )
                else:
                    yield from self._from(statements, at + 1, after, learnt, now, depth)
        except _Discarded:
            yield Outcome(False, statement.place, session, doubts, is_discarded=True)
        except Errs:
            if statement.verb == "warn":  # nothing comes of it
                yield from self._from(statements, at + 1, session, assumed, doubts, depth)
            else:
                yield Outcome(False, statement.place, session, doubts, is_deferred=True)

    def _statement(
        self, statement: Statement, session: Session, assumed: dict[str, Truth], depth: int
    ) -> Iterator[tuple[bool, bool, Session, dict[str, Truth], Doubts]]:
        """Whether all conditions hold, in every way that is possible."""
        ways: list[tuple[int, bool, Session, dict[str, Truth], Doubts]] = [(0, False, session, assumed, ())]
        while ways:
            at, past, now, known, doubt = ways.pop()
            if at >= len(statement.conditions):
                yield True, past, now, known, doubt
                continue
            condition = statement.conditions[at]
            if condition.name.startswith("set "):
                ways.append((at + 1, past, self._set(condition, now), known, doubt))
                continue
            if condition.name in _MODIFIERS:
                ways.append((at + 1, past or condition.name == "endpass", now, known, doubt))
                continue
            for held, fact, why in self._possible(condition, now, known, depth):
                learnt = {**known, **fact}
                if held:
                    ways.append((at + 1, past, now, learnt, (*doubt, *why)))
                else:
                    yield False, past, now, learnt, (*doubt, *why)

    def _possible(
        self, condition: Condition, session: Session, assumed: dict[str, Truth], depth: int
    ) -> Iterator[tuple[bool, dict[str, Truth], Doubts]]:
        key = f"{condition.name}={condition.value}"
        why: Unclear | None = None
        try:
            held = assumed.get(key) or self._holds(condition, session, depth)
        except Unclear as error:
            held, why = Truth.CHOICE, error
        except Chosen:
            held = Truth.CHOICE
        except Failed:
            held = Truth.NO
        for answer in (Truth.YES, Truth.NO) if held is Truth.CHOICE else (held,):
            fact = {key: answer} if held is Truth.CHOICE else {}
            doubts = (Doubt(key, answer is Truth.YES, why.place, why.words),) if why else ()
            yield (answer is Truth.YES) is not condition.is_negated, fact, doubts

    def _set(self, condition: Condition, session: Session) -> Session:
        name = condition.name.removeprefix("set ").strip()
        try:
            value = self.lists.expander.expand(condition.value, session, condition.place)
        except (Unclear, Failed, Chosen):
            value = UNKNOWN  # whoever reads it finds that it isn't known
        others = tuple(pair for pair in session.variables if pair[0] != name)
        return msgspec.structs.replace(session, variables=(*others, (name, value)))

    def _holds(self, condition: Condition, session: Session, depth: int) -> Truth:
        name, value, place = condition.name, condition.value, condition.place
        lists = {
            "hosts": ("hostlist", str(session.address)),
            "domains": ("domainlist", session.domain),
            "sender_domains": ("domainlist", session.reverse_domain),
            "senders": ("addresslist", session.reverse_path),
            "recipients": ("addresslist", session.forward_path),
            "local_parts": ("localpartlist", session.local_part),
        }
        if name in lists:
            kind, what = lists[name]
            return self.lists.match(kind, value, what, session, place)
        if name == "authenticated":
            return Truth.NO
        if name == "encrypted":
            return self._encrypted(value, session, place)
        if name == "condition":
            return self.lists.expander.is_true(value, session, place)
        if name == "verify":
            return self._verify(value, session, place)
        if name == "acl":
            return self._nested(value, session, place, depth)
        if name in _CHOICES:
            return Truth.CHOICE
        raise Unclear(place, f'the condition "{name}" is not known here')

    def _encrypted(self, value: str, session: Session, place: Place) -> Truth:
        if not session.is_encrypted:
            return Truth.NO
        if value.strip() == "*":
            return Truth.YES
        del place
        return Truth.CHOICE  # the client takes part in choosing the cipher

    def _verify(self, value: str, session: Session, place: Place) -> Truth:
        what = value.replace(" ", "").partition("=")[0].partition("/")[0].lower()
        if what == "recipient":
            return self.verifies(session)
        if what == "certificate":
            raise Unclear(
                place, "whose client certificates are verified is decided by the authorities trusted, not written here"
            )
        return Truth.CHOICE

    def _nested(self, value: str, session: Session, place: Place, depth: int) -> Truth:
        name = self.lists.expander.expand(value, session, place).strip()
        if name.partition(" ")[0] in self.lists.configuration.acls:
            name = name.partition(" ")[0]  # what follows are its arguments
        found = [one for one in self._run(Text(name, place), session, {}, (), depth + 1) if not one.is_discarded]
        if not found:
            raise _Discarded
        if all(one.is_deferred for one in found):
            raise Errs  # the statement that asks defers with it
        answers = {one.is_accepted for one in found if not one.is_deferred}
        doubts = [doubt for one in found for doubt in one.doubts]
        if len(answers) == 1 and _covers([one.doubts for one in found]):
            return truth(answers.pop())
        if doubts:
            raise Unclear(doubts[0].place, doubts[0].words)
        return Truth.CHOICE


def _covers(ways: list[Doubts]) -> bool:
    """However the conditions in doubt come out, one of the ways is taken."""
    if not ways:
        return False
    if any(not way for way in ways):
        return True
    key = ways[0][0].key
    for held in (True, False):
        rest = [
            tuple(doubt for doubt in way if doubt.key != key)
            for way in ways
            if all(doubt.is_held is held for doubt in way if doubt.key == key)
        ]
        if not _covers(rest):
            return False
    return True


def _decide(verb: str, held: bool, is_past_endpass: bool) -> bool | None:
    """True and False end the ACL; None goes on to the next statement."""
    if verb in _GRANTING:
        if held:
            return verb == "accept"  # discard says 250 and throws away, or is an error where it may not stand
        return False if is_past_endpass else None
    if verb in ("deny", "drop", "defer"):
        return False if held else None
    if verb == "require":
        return None if held else False
    return None  # warn
