"""Commands: read from a line, printed as a line (RFC 5321 4.1.1 and the extensions in `docs/rfc.md`).

One struct a command, parameters typed. `parse_command` is the truth about what is well-formed; whether a command may come
now is decided in `state`. What it reads, `encode` prints so that it reads back the same.

Tolerated beside the grammar: spaces behind the colon of MAIL and RCPT (many devices write them) and white space at a line's end.
"""

import re
from collections.abc import Callable

import msgspec

from posthouse.smtp.address import (
    DOMAIN,
    DOT_STRING,
    LOCAL_PART_OCTETS,
    PATH_OCTETS,
    AddressError,
    Path,
    parse_forward_path,
    parse_reverse_path,
)
from posthouse.smtp.event import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    BodyType,
    MailParameters,
    RcptParameters,
    Verb,
)
from posthouse.smtp.extension import NO_OFFERS, Offers
from posthouse.smtp.parameter import (
    ParameterError,
    parse_mail_parameters,
    parse_rcpt_parameters,
    print_mail_parameters,
    print_rcpt_parameters,
)
from posthouse.smtp.reply import Reply, reply

HELLO_NAME_OCTETS = 255
_LARGEST_CHUNK_DIGITS = 20

# The path in its brackets, a quoted string in it skipped over as one; then the parameters.
_bracketed = re.compile(rb' *<((?>(?:"(?>(?:[^"\\]|\\.)*)"|[^"<>])*))>(.*+)').fullmatch
_common_path = re.compile(
    rb"(?:(MAIL FROM)|RCPT TO):<(%s)@(%s(?<=[A-Za-z]))>(?: SIZE=([0-9]{1,20}+))?( BODY=8BITMIME)?"
    % (DOT_STRING, DOMAIN)
).fullmatch
_chunk = re.compile(rb"([0-9]{1,%d}+)(?: ++([A-Za-z]++))?" % _LARGEST_CHUNK_DIGITS).fullmatch
_initial_response = re.compile(rb"([A-Za-z0-9_\-]{1,20})(?: ++([A-Za-z0-9+/]*={0,2}))?").fullmatch
_unprintable = re.compile(rb"[\x00-\x1f\x7f]").search


class CommandError(Exception):
    """The line is no command that can be carried out; `reply` says why."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(str(answer))
        self.reply = answer


class Command(msgspec.Struct, frozen=True):
    """One command line."""

    def encode(self) -> bytes:
        """The line with its CRLF."""
        raise NotImplementedError


class Hello(Command, frozen=True):
    """EHLO, HELO or LHLO. `name` is printable ASCII, otherwise whatever the client made up."""

    verb: Verb
    name: str

    def encode(self) -> bytes:
        """The line with its CRLF."""
        return f"{self.verb} {self.name}\r\n".encode()


class Mail(Command, frozen=True):
    """MAIL: begins a transaction."""

    reverse_path: Path
    parameters: MailParameters = NO_MAIL_PARAMETERS

    def encode(self) -> bytes:
        """The line with its CRLF."""
        return b"MAIL FROM:<%s>%s\r\n" % (self.reverse_path.encode(), print_mail_parameters(self.parameters))


class Rcpt(Command, frozen=True):
    """RCPT: names one recipient."""

    forward_path: Path
    parameters: RcptParameters = NO_RCPT_PARAMETERS

    def encode(self) -> bytes:
        """The line with its CRLF."""
        return b"RCPT TO:<%s>%s\r\n" % (self.forward_path.encode(), print_rcpt_parameters(self.parameters))


class Bdat(Command, frozen=True):
    """BDAT: `size_bytes` octets of content follow the line (RFC 3030 2)."""

    size_bytes: int
    last: bool = False

    def encode(self) -> bytes:
        """The line with its CRLF, without the chunk itself."""
        return b"BDAT %d LAST\r\n" % self.size_bytes if self.last else b"BDAT %d\r\n" % self.size_bytes


class Auth(Command, frozen=True):
    """AUTH with an initial response as base64 text: "" for none, "=" for an empty one (RFC 4954 4)."""

    mechanism: str
    initial_response: str = ""

    def encode(self) -> bytes:
        """The line with its CRLF."""
        return f"AUTH {self.mechanism} {self.initial_response}".rstrip().encode() + b"\r\n"


class Simple(Command, frozen=True):
    """A command that is its verb and perhaps some text: DATA, RSET, NOOP, QUIT, VRFY, EXPN, HELP, STARTTLS."""

    verb: str
    argument: bytes = b""

    def encode(self) -> bytes:
        """The line with its CRLF."""
        return b"%s %s\r\n" % (self.verb.encode(), self.argument) if self.argument else b"%s\r\n" % self.verb.encode()


DATA = Simple("DATA")
RSET = Simple("RSET")
QUIT = Simple("QUIT")
STARTTLS = Simple("STARTTLS")

UNKNOWN_COMMAND = reply(500, "5.5.1", "Command not recognised")
NOT_IMPLEMENTED = reply(502, "5.5.1", "Command not implemented")
NO_ARGUMENT_ALLOWED = reply(501, "5.5.4", "This command takes no argument")
UNPRINTABLE_COMMAND = reply(500, "5.5.2", "A command line holds no control characters")
EIGHT_BIT_COMMAND = reply(500, "5.5.2", "This command is ASCII only")
NOT_ASCII = reply(553, "5.6.7", "An address that is not ASCII needs the SMTPUTF8 parameter")
BAD_CHUNK = reply(501, "5.5.4", "Syntax: BDAT octets [LAST]")


def parse_command(line: bytes, offers: Offers = NO_OFFERS, *, smtputf8: bool = False) -> Command:
    """The command in `line`, which has lost its CRLF. CommandError when there is none.

    `offers` says which parameters exist, `smtputf8` whether the transaction's MAIL had that parameter.
    """
    return parse_common_command(line, offers) or parse_any_command(line, offers, smtputf8=smtputf8)


def parse_common_command(line: bytes, offers: Offers) -> Command | None:
    """What nearly every line is, read by one expression; None for anything else. A short cut: `parse_any_command` says the same."""
    found = _common_path(line)
    if not found:
        return _BARE.get(line)
    is_mail, local_part, domain, size, body = found.groups()
    if len(local_part) > LOCAL_PART_OCTETS or len(local_part) + len(domain) > PATH_OCTETS - len("<@>"):
        return None
    path = Path(local_part, domain.decode().lower())
    if not size and not body:
        return Mail(path) if is_mail else Rcpt(path)
    if not is_mail or (size and not offers.size) or (body and not offers.eight_bit_mime):
        return None
    return Mail(path, MailParameters(int(size or 0), BodyType.EIGHT_BIT_MIME if body else BodyType.SEVEN_BIT))


def parse_any_command(line: bytes, offers: Offers, *, smtputf8: bool) -> Command:
    """As `parse_command`: the grammar itself."""
    if _unprintable(line):
        raise CommandError(UNPRINTABLE_COMMAND)
    line = line.rstrip(b" ")
    verb, _, argument = line.partition(b" ")
    name = verb.upper()
    parse = _PARSERS.get(name)
    if parse:
        return parse(name, argument, offers)
    if name == b"MAIL":
        return _parse_mail(argument, offers)
    if name == b"RCPT":
        return _parse_rcpt(argument, offers, smtputf8=smtputf8)
    raise CommandError(NOT_IMPLEMENTED if name in _KNOWN_ELSEWHERE else UNKNOWN_COMMAND)


def command_line_limit(line: bytes, offers: Offers) -> int:
    """Octets that the line which begins with `line` may have, CRLF included (RFC 5321 4.5.3.1.4)."""
    verb = line[:5].upper()
    if verb == b"MAIL ":
        growth = 26 * offers.size + 17 * offers.eight_bit_mime + 10 * offers.smtputf8 + 500 * bool(offers.auth)
        return LINE_OCTETS + growth + _DSN_GROWTH * offers.dsn
    if verb == b"RCPT ":
        return LINE_OCTETS + _DSN_GROWTH * offers.dsn
    return AUTH_LINE_OCTETS if verb == b"AUTH " else LINE_OCTETS


def _parse_mail(argument: bytes, offers: Offers) -> Mail:
    found = _bracketed(argument, 5) if argument[:5].upper() == b"FROM:" else None
    if not found:
        raise CommandError(_MAIL_SYNTAX if argument.isascii() or offers.smtputf8 else NOT_ASCII)
    text, rest = found.groups()
    try:
        parameters = parse_mail_parameters(rest, offers) if rest else NO_MAIL_PARAMETERS
        return Mail(parse_reverse_path(text, smtputf8=parameters.smtputf8), parameters)
    except ParameterError as error:
        raise CommandError(error.reply) from error
    except AddressError as error:
        raise CommandError(_answer_to(error)) from error


def _parse_rcpt(argument: bytes, offers: Offers, *, smtputf8: bool) -> Rcpt:
    found = _bracketed(argument, 3) if argument[:3].upper() == b"TO:" else None
    if not found:
        raise CommandError(_RCPT_SYNTAX if argument.isascii() or smtputf8 else NOT_ASCII)
    text, rest = found.groups()
    try:
        parameters = parse_rcpt_parameters(rest, offers, smtputf8=smtputf8) if rest else NO_RCPT_PARAMETERS
        return Rcpt(parse_forward_path(text, smtputf8=smtputf8), parameters)
    except ParameterError as error:
        raise CommandError(error.reply) from error
    except AddressError as error:
        raise CommandError(_answer_to(error)) from error


def _answer_to(error: AddressError) -> Reply:
    return reply(553 if error.enhanced == "5.6.7" else 501, error.enhanced, error.words)


def _parse_hello(verb: bytes, argument: bytes, _offers: Offers) -> Command:
    name = argument.strip(b" ")
    if not name or len(name) > HELLO_NAME_OCTETS or not name.isascii():
        raise CommandError(reply(501, "5.5.4", f"Syntax: {verb.decode()} your.host.name"))
    return Hello(Verb(verb.decode()), name.decode())


def _parse_bare(verb: bytes, argument: bytes, _offers: Offers) -> Command:
    if argument:
        raise CommandError(NO_ARGUMENT_ALLOWED)
    return _BARE[verb]


def _parse_text(verb: bytes, argument: bytes, _offers: Offers) -> Command:
    if not argument.isascii():
        raise CommandError(EIGHT_BIT_COMMAND)
    return Simple(verb.decode(), argument)


def _parse_lookup(verb: bytes, argument: bytes, offers: Offers) -> Command:
    """VRFY or EXPN, which may end with SMTPUTF8 (RFC 6531 3.7.4.2)."""
    if not argument:
        raise CommandError(reply(501, "5.5.4", f"Syntax: {verb.decode()} address"))
    if not argument.isascii() and not (offers.smtputf8 and argument.upper().endswith(b" SMTPUTF8")):
        raise CommandError(NOT_ASCII)
    return Simple(verb.decode(), argument)


def _parse_bdat(_verb: bytes, argument: bytes, offers: Offers) -> Command:
    if not offers.chunking:
        raise CommandError(NOT_IMPLEMENTED)
    found = _chunk(argument)
    last = found.group(2) if found else None
    if not found or (last and last.upper() != b"LAST"):
        raise CommandError(BAD_CHUNK)
    return Bdat(int(found.group(1)), bool(last))


def _parse_auth(_verb: bytes, argument: bytes, _offers: Offers) -> Command:
    found = _initial_response(argument)
    if not found:
        raise CommandError(reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]"))
    return Auth(found.group(1).decode().upper(), (found.group(2) or b"").decode())


LINE_OCTETS = 512
AUTH_LINE_OCTETS = 12288  # RFC 4954 4
_DSN_GROWTH = 1024  # room for ORCPT or ENVID in xtext, more than RFC 3461 asks for

_MAIL_SYNTAX = reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters], the address in angle brackets")
_RCPT_SYNTAX = reply(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters], the address in angle brackets")
_KNOWN_ELSEWHERE = frozenset({b"SEND", b"SOML", b"SAML", b"TURN", b"ETRN", b"ATRN", b"BURL"})
_BARE: dict[bytes, Command] = {b"DATA": DATA, b"RSET": RSET, b"QUIT": QUIT, b"STARTTLS": STARTTLS}
_PARSERS: dict[bytes, Callable[[bytes, bytes, Offers], Command]] = {
    b"EHLO": _parse_hello,
    b"HELO": _parse_hello,
    b"LHLO": _parse_hello,
    b"DATA": _parse_bare,
    b"RSET": _parse_bare,
    b"QUIT": _parse_bare,
    b"STARTTLS": _parse_bare,
    b"NOOP": _parse_text,
    b"HELP": _parse_text,
    b"VRFY": _parse_lookup,
    b"EXPN": _parse_lookup,
    b"BDAT": _parse_bdat,
    b"AUTH": _parse_auth,
}
VERBS = frozenset({b"MAIL", b"RCPT", *_PARSERS})
"""All commands that are known here."""
