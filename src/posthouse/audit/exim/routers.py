"""Where the routers would send an address: the first that takes it decides (specification, chapters 3 and 15 to 22)."""

import enum
import re
from collections.abc import Iterator

import msgspec

from posthouse.audit.exim.expansion import Chosen, Errs, Failed
from posthouse.audit.exim.lists import Lists, items
from posthouse.audit.exim.reading import Driver, Place, Text, Unclear
from posthouse.audit.exim.session import Session, Truth

_DEEPEST = 8
_ADDRESS = re.compile(r"<?([^\s<>,:]+)@([A-Za-z0-9.-]+)>?")


class Way(enum.Enum):
    """The end of an address."""

    REMOTE = enum.auto()
    LOCAL = enum.auto()
    NOWHERE = enum.auto()


class Routed(msgspec.Struct, frozen=True):
    """Where an address goes, as which address, and by which router."""

    way: Way
    forward_path: str
    place: Place


class Router:
    """Routes strangers' recipients."""

    def __init__(self, lists: Lists) -> None:
        self.lists = lists

    def route(self, session: Session, depth: int = 0) -> list[Routed]:
        """Every destination. Unclear when a router can't be judged."""
        found: list[Routed] = []
        files: Text | None = None
        for router in self.lists.configuration.routers:
            if router.is_set("verify_only"):
                continue
            stripped = self._affixes(router, session)
            try:
                applies = Truth.NO if stripped is None else self._applies(router, stripped)
            except Errs:
                break
            if stripped is None or applies is Truth.NO:
                continue
            taken = self._take(router, stripped, depth)
            found += taken or []
            if applies is Truth.CHOICE:
                files = files or router.options.get("require_files")
                continue  # and for whom it does not apply, it goes on
            if taken is None and router.is_set("more", default=True):
                continue
            if taken is None or not router.is_set("unseen"):
                break
        found = found or [Routed(Way.NOWHERE, session.forward_path, Place("", 0))]
        if files is not None and len({one.way is Way.REMOTE for one in found}) > 1:
            raise Unclear(files.place, "where an address goes hangs on files (require_files), which are not looked for")
        return found

    def verifies(self, session: Session) -> Truth:
        """`verify = recipient`."""
        return Truth.NO if all(one.way is Way.NOWHERE for one in self.route(session)) else Truth.YES

    def _affixes(self, router: Driver, session: Session) -> Session | None:
        """The local part without its prefix or suffix; None when the router wants one that isn't there."""
        local = session.local_part
        for name in ("local_part_prefix", "local_part_suffix"):
            wanted = router.get(name)
            if not wanted:
                continue
            cut = next((one for one in (_cut(local, item, name) for item in items(wanted)) if one is not None), None)
            if cut is None and not router.is_set(f"{name}_optional"):
                return None
            local = local if cut is None else cut
        return session.to(local, session.domain)

    def _applies(self, router: Driver, session: Session) -> Truth:
        if router.is_set("check_local_user"):
            return Truth.NO  # a trick in a local part is no user's name, and neither is a third party's mailbox
        questions = (("domains", "domainlist", session.domain), ("local_parts", "localpartlist", session.local_part))
        answers = [Truth.CHOICE] if "require_files" in router.options else []
        for name, kind, value in (*questions, ("senders", "addresslist", session.reverse_path)):
            text = router.options.get(name)
            if text is not None:
                answers.append(self.lists.match(kind, text.text, value, session, text.place))
                if answers[-1] is Truth.NO:
                    return Truth.NO
        for name, text in router.options.items():
            if name.startswith("condition"):
                answers.append(self.lists.expander.is_true(text.text, session, text.place))
                if answers[-1] is Truth.NO:
                    return Truth.NO
        return Truth.CHOICE if Truth.CHOICE in answers else Truth.YES

    def _take(self, router: Driver, session: Session, depth: int) -> list[Routed] | None:
        driver = router.get("driver").strip()
        takers = {
            "accept": self._accept,
            "dnslookup": self._dnslookup,
            "manualroute": self._manualroute,
            "ipliteral": self._ipliteral,
        }
        if driver == "redirect":
            return self._redirect(router, session, depth)
        if driver not in takers:
            raise Unclear(
                router.place,
                f"where the {driver or 'nameless'} router {router.name} sends an address isn't judged here",
            )
        return takers[driver](router, session)

    def _accept(self, router: Driver, session: Session) -> list[Routed] | None:
        return self._handed(router, session)

    def _dnslookup(self, router: Driver, session: Session) -> list[Routed] | None:
        return self._handed(router, session)

    def _ipliteral(self, router: Driver, session: Session) -> list[Routed] | None:
        return self._handed(router, session) if session.domain.startswith("[") else None

    def _handed(self, router: Driver, session: Session) -> list[Routed]:
        """By the driver of the router's transport; any but smtp delivers here."""
        name = router.get("transport").strip()
        transport = self.lists.configuration.transports.get(name)
        if transport is None:
            text = router.options.get("transport")
            place = text.place if text else router.place
            raise Unclear(place, f'the transport "{name}" of the router {router.name} is not one that is written here')
        way = Way.REMOTE if transport.get("driver").strip() == "smtp" else Way.LOCAL
        return [Routed(way, session.forward_path, router.place)]

    def _manualroute(self, router: Driver, session: Session) -> list[Routed] | None:
        remote = self._handed(router, session)
        if "route_data" in router.options:
            text = router.options["route_data"]
            try:
                value = self.lists.expander.expand(text.text, session, text.place)
            except Failed:
                return None
            except Chosen:
                return remote
            return remote if value.strip() else None
        listed = router.options.get("route_list")
        if listed is None:
            return None
        for rule in re.split(r"\s*;\s*", listed.text):
            pattern = rule.strip().split(" ")[0]
            if pattern and self.lists.match("domainlist", pattern, session.domain, session, listed.place) is Truth.YES:
                return remote
        return None

    def _redirect(self, router: Driver, session: Session, depth: int) -> list[Routed] | None:
        text = router.options.get("data")
        if text is None or depth >= _DEEPEST:
            return None  # a file is a user's, or fixed: it can't be a stranger's choice
        if _is_fixed(text.text):
            return None  # an alias leads to fixed places; none of them is made of what a stranger writes
        try:
            data = self.lists.expander.expand(text.text, session, text.place).strip()
        except Failed:
            return None
        except Chosen:
            raise Unclear(text.place, "where the router redirects to hangs on what is written in the mail") from None
        if not data or data.startswith((":unknown:", ":defer:")):
            return None
        if data.startswith((":fail:", ":blackhole:")):
            return [Routed(Way.NOWHERE, session.forward_path, router.place)]
        found: list[Routed] = []
        for local, domain in self._addresses(data, session):
            found += [
                Routed(one.way, one.forward_path, router.place if one.way is Way.REMOTE else one.place)
                for one in self.route(session.to(local, domain), depth + 1)
            ]
        return found or None

    def _addresses(self, data: str, session: Session) -> Iterator[tuple[str, str]]:
        for part in re.split(r"[,\n]", data):
            found = _ADDRESS.fullmatch(part.strip())
            if found and (found[1], found[2]) != (session.local_part, session.domain):
                yield found[1], found[2]


def _is_fixed(data: str) -> bool:
    """Nothing but a look-up whose result is not expanded again: what it yields stands in a table."""
    bare = data.strip()
    return (
        bare.startswith("${lookup")
        and bare.endswith("}")
        and "${expand" not in bare
        and not re.search(r"\}\s*\{.*\$\{?local_part", _after_lookup(bare))
    )


def _after_lookup(text: str) -> str:
    """What follows the key and the file of a look-up: {yes}{no}."""
    depth = groups = 0
    for at, char in enumerate(text[1:], 1):
        depth += (char == "{") - (char == "}")
        if char == "}" and depth == 1:
            groups += 1
            if groups == 2:
                return text[at:]
    return ""


def _cut(local_part: str, affix: str, name: str) -> str | None:
    bare = affix.strip()
    if name.endswith("prefix"):
        if bare.startswith("*"):
            at = local_part.find(bare[1:])
            return local_part[at + len(bare) - 1 :] if at > 0 else None
        return local_part[len(bare) :] if local_part.startswith(bare) else None
    if bare.endswith("*"):
        at = local_part.find(bare[:-1])
        return local_part[:at] if at > 0 else None
    return local_part[: -len(bare)] if local_part.endswith(bare) else None
