"""What EHLO offers, and what an offer permits (RFC 5321 2.2, 4.1.1.1)."""

import re

import msgspec

from posthouse.smtp.reply import Reply

_keyword = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*").fullmatch
_LARGEST_NUMBER = 20  # digits; RFC 1870 4


class Limits(msgspec.Struct, frozen=True):
    """The LIMITS extension (RFC 9422). 0: the server names no such limit."""

    mail_max: int = 0
    rcpt_max: int = 0
    rcpt_domain_max: int = 0

    def __bool__(self) -> bool:
        return bool(self.mail_max or self.rcpt_max or self.rcpt_domain_max)

    @property
    def text(self) -> str:
        """As it stands behind the keyword: `MAILMAX=10 RCPTMAX=100`."""
        named = (("MAILMAX", self.mail_max), ("RCPTMAX", self.rcpt_max), ("RCPTDOMAINMAX", self.rcpt_domain_max))
        return " ".join(f"{name}={value}" for name, value in named if value)


class Offers(msgspec.Struct, frozen=True):
    """The extensions one server offers in one EHLO or LHLO reply; nothing is offered by HELO.

    `size` says that SIZE is offered, `size_limit` is its value in octets, 0 for none. `auth` holds mechanism names in upper
    case. `others` holds keywords this program does not know, in upper case.
    """

    pipelining: bool = False
    size: bool = False
    size_limit: int = 0
    eight_bit_mime: bool = False
    smtputf8: bool = False
    chunking: bool = False
    enhanced_status_codes: bool = False
    dsn: bool = False
    starttls: bool = False
    auth: tuple[str, ...] = ()
    limits: Limits = Limits()
    others: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """The lines of the EHLO reply behind the first."""
        return tuple(
            line
            for offered, line in (
                (self.pipelining, "PIPELINING"),
                (self.size, f"SIZE {self.size_limit}"),
                (self.starttls, "STARTTLS"),
                (self.auth, f"AUTH {' '.join(self.auth)}"),
                (self.enhanced_status_codes, "ENHANCEDSTATUSCODES"),
                (self.eight_bit_mime, "8BITMIME"),
                (self.smtputf8, "SMTPUTF8"),
                (self.chunking, "CHUNKING"),
                (self.dsn, "DSN"),
                (self.limits, f"LIMITS {self.limits.text}"),
            )
            if offered
        )


NO_OFFERS = Offers()


def parse_offers(answer: Reply) -> Offers:
    """What a positive reply to EHLO or LHLO offers. A line that is not in the grammar offers nothing."""
    offers: dict[str, object] = {}
    auth: list[str] = []
    others: list[str] = []
    for line in answer.lines[1:]:
        if line[:5].upper() == "AUTH=":  # the form of a draft; some servers send only this one
            line = "AUTH " + line[5:]  # noqa: PLW2901
        keyword, *words = line.upper().split()[:64] or ("",)
        if not _keyword(keyword):
            continue
        if keyword in _FLAGS:
            offers[_FLAGS[keyword]] = True
        elif keyword == "SIZE":
            offers |= {"size": True, "size_limit": _number(words[0]) if words else 0}
        elif keyword == "AUTH":
            auth += [word for word in words if word not in auth]
        elif keyword == "LIMITS":
            offers["limits"] = _parse_limits(words)
        else:
            others.append(keyword)
    return msgspec.structs.replace(NO_OFFERS, **offers, auth=tuple(auth), others=tuple(others))


_FLAGS = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eight_bit_mime",
    "SMTPUTF8": "smtputf8",
    "CHUNKING": "chunking",
    "ENHANCEDSTATUSCODES": "enhanced_status_codes",
    "DSN": "dsn",
    "STARTTLS": "starttls",
}


def _parse_limits(words: list[str]) -> Limits:
    named = dict(word.partition("=")[::2] for word in words)
    return Limits(*(_number(named.get(name, "")) for name in ("MAILMAX", "RCPTMAX", "RCPTDOMAINMAX")))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LARGEST_NUMBER else 0
