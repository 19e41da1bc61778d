"""What can be read of a sendmail configuration: features, rule sets with their lines, class R, and the access table's source.

A .cf is a program in a rewriting language, so reading proves openings (a feature, a table's entry), never closure.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.audit.crowd import try_network
from posthouse.policy.networks import Network

_FEATURE_CF = re.compile(r"#####\s+\$Id: (\w+)\.m4")
_FEATURE_MC = re.compile(r"^\s*FEATURE\(\s*`?(\w+)'?")
_RULE_SET = re.compile(r"^S([A-Za-z_]\w*)")
_MAP = re.compile(r"^Kaccess\s+(\w+)\s+(.*)")
_OWN_RULES = ("Local_check_rcpt", "Local_Relay_Auth", "Local_trust_auth", "ParseLocal", "Local_localaddr")
"""Rule sets that a stock configuration leaves empty, FEATURE(redirect) aside, and in which a rule may let strangers relay."""


class Line(msgspec.Struct, frozen=True):
    """Something, and the line that says it."""

    text: str
    file: str
    line: int


class Entry(msgspec.Struct, frozen=True):
    """One line of the access table: `Connect:192.0.2 RELAY` has the tag connect."""

    tag: str
    key: str
    value: str
    file: str
    line: int


class Text(msgspec.Struct, frozen=True):
    """What the files say."""

    features: dict[str, Line]
    own_rules: tuple[Line, ...]
    relay_domains: tuple[Line, ...]
    access: tuple[Entry, ...]
    is_compiled: bool
    unread: tuple[Line, ...] = ()
    access_table: tuple[str, str] | None = None  # kind and path, without .db

    def relays(self, *tags: str) -> Iterator[Entry]:
        """The entries that grant relaying, of these tags; "" is no tag."""
        yield from (entry for entry in self.access if entry.value.upper() == "RELAY" and entry.tag in tags)


def read(path: Path) -> Text:
    """The text of a .cf or .mc file, and of the files it names."""
    lines = path.read_text(errors="surrogateescape").splitlines()
    is_compiled = path.suffix == ".cf" or any(_RULE_SET.match(line) for line in lines)
    features: dict[str, Line] = {}
    own: list[Line] = []
    domains: list[Line] = []
    access: tuple[Entry, ...] = ()
    access_table: tuple[str, str] | None = None
    unread: list[Line] = []
    rules = place = ""
    for number, raw in enumerate(lines, 1):
        found = (_FEATURE_CF if is_compiled else _FEATURE_MC).search(raw)
        if found:
            features.setdefault(found[1], Line(raw.strip(), str(path), number))
        named = _RULE_SET.match(raw)
        rules = named[1] if named else rules
        is_own = rules in _OWN_RULES and "REDIRECT" not in raw
        if rules == "Canonify2":
            place = _canonify_place(raw, place)
            is_own = place == "LOCAL_RULE_3" and not re.search(r"domaintable|BITNET|UUCP|< @@ ", raw)
        if raw.startswith("R") and is_own:
            own.append(Line(f"{rules}: {' '.join(raw.split())}", str(path), number))
        domains += _class_r(raw, path, number, unread)
        table = _MAP.match(raw)
        if table:
            access = _access(table[1], table[2], Line(raw, str(path), number), unread)
            access_table = (table[1], table[2].split()[-1])
    return Text(features, tuple(own), tuple(domains), access, is_compiled, tuple(unread), access_table)


def _canonify_place(raw: str, place: str) -> str:
    """LOCAL_RULE_3 stands in Canonify2 between the rule that takes address literals and the one for class P (proto.m4)."""
    if re.match(r"R\$\* < @@ \$\+ >", raw):
        return "LOCAL_RULE_3"
    return "" if "$=P >" in raw else place


def _class_r(raw: str, path: Path, number: int, unread: list[Line]) -> Iterator[Line]:
    if raw.startswith("CR"):
        yield from (Line(word, str(path), number) for word in raw[2:].split())
    elif raw.startswith("FR"):
        is_optional = raw[2:].lstrip().startswith("-o")
        name = raw[2:].strip().removeprefix("-o").strip().split(" ")[0]
        file = Path(name)
        if not file.is_file():
            if not is_optional:
                unread.append(Line(f"the file {name} of class R can't be read", str(path), number))
            return
        for at, line in enumerate(file.read_text(errors="surrogateescape").splitlines(), 1):
            word = line.partition("#")[0].strip()
            if word:
                yield Line(word, name, at)


def _access(kind: str, options: str, line: Line, unread: list[Line]) -> tuple[Entry, ...]:
    """The source that makemap is given: the text file beside the table."""
    path = Path(options.rsplit(maxsplit=1)[-1])
    source = path if path.is_file() else path.with_suffix("") if path.suffix == ".db" else path
    if kind not in ("hash", "btree", "dbm", "text", "cdb") or not source.is_file():
        unread.append(
            Line(
                f"the source of the access table, {source}, can't be read: its entries aren't known",
                line.file,
                line.line,
            )
        )
        return ()
    entries = []
    for number, raw in enumerate(source.read_text(errors="surrogateescape").splitlines(), 1):
        entry = entry_of(raw, str(source), number)
        entries += [entry] if entry else []
    return tuple(entries)


def entry_of(raw: str, file: str, line: int) -> Entry | None:
    """The entry on one line as makemap reads it; None for comments and blank lines."""
    parts = raw.split(None, 1)
    if len(parts) != 2 or parts[0].startswith("#"):
        return None
    tag, separator, key = parts[0].partition(":")
    if not separator or tag.lower() not in _TAGS:
        tag, key = "", parts[0]
    return Entry(tag.lower(), key, parts[1].strip(), file, line)


_TAGS = frozenset(
    {"connect", "from", "to", "spam", "greetpause", "clientrate", "clientconn", "certissuer", "certsubject"}
)
_TAGS |= {"try_tls", "tls_clt", "tls_srv", "tls_rcpt", "srv_features", "clt_features", "authinfo", "bcc", "user"}


def network_of(key: str) -> Network | None:
    """The addresses that a key of class R or of the access table stands for: 192.0.2 is 192.0.2.0/24."""
    bare = key.removeprefix("[").removesuffix("]").rstrip(".")
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}", bare):
        count = bare.count(".") + 1
        return try_network(f"{bare}{'.0' * (4 - count)}/{8 * count}")
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", bare):
        return try_network(bare)
    if bare.lower().startswith("ipv6:"):
        groups = bare[5:].rstrip(":").split(":")
        if "" in groups or len(groups) == 8:
            return try_network(bare[5:])
        return try_network(f"{':'.join(groups)}::/{16 * len(groups)}")
    return None


def networks(text: Text) -> Iterator[Network]:
    """Every network that class R or the access table names."""
    keys = [line.text for line in text.relay_domains] + [
        entry.key for entry in text.access if entry.tag in ("", "connect")
    ]
    for key in keys:
        network = network_of(key)
        if network is not None:
            yield network
