"""The parameters of MAIL and RCPT (RFC 1870, 3461, 4954, 6152, 6531, 6533), read and printed.

A parameter of an extension that is not offered is unknown (555); one that is given twice, or whose value is not in the
grammar, is 501 (RFC 5321 4.1.1.11).
"""

import re
from collections.abc import Callable

import msgspec

from posthouse.smtp.event import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    BodyType,
    MailParameters,
    Notify,
    RcptParameters,
    Ret,
)
from posthouse.smtp.extension import Offers
from posthouse.smtp.reply import Reply, reply

ENVELOPE_ID_OCTETS = 100  # RFC 3461 4.4
VALUE_OCTETS = 500  # RFC 3461 4.2 and RFC 4954 5

_parameter = re.compile(rb"([A-Za-z0-9][A-Za-z0-9\-]*+)(?:=([\x21-\x3c\x3e-\x7e\x80-\xff]++))?").fullmatch
_xtext = re.compile(r"(?>(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-Fa-f]{2})*)").fullmatch
_xtext_hex = re.compile(r"\+([0-9A-Fa-f]{2})").sub
_needs_xtext = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x7e]").sub
_unitext = re.compile(r"(?>(?:[\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e\x80-\U0010ffff]|\\x\{[0-9A-F]{2,6}\})*)").fullmatch
_unitext_hex = re.compile(r"\\x\{([0-9A-F]{2,6})\}").sub
_needs_unitext = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]").sub
_address_type = re.compile(r"[A-Za-z0-9\-]+").fullmatch
_unprintable = re.compile(r"[\x00-\x1f\x7f]").search


class ParameterError(ValueError):
    """A parameter that is unknown, doubled or malformed; `reply` says which and what is wrong."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(str(answer))
        self.reply = answer


def parse_mail_parameters(text: bytes, offers: Offers) -> MailParameters:
    """The parameters behind MAIL's path; `text` begins with the space that divides them."""
    values: dict[str, object] = {}
    for keyword, value in _split(text):
        read = _MAIL_READERS.get(keyword)
        if not read or not _is_offered(keyword, offers):
            raise ParameterError(reply(555, "5.5.4", f"Parameter {keyword} is not known here"))
        values |= read(value)
    return msgspec.structs.replace(NO_MAIL_PARAMETERS, **values) if values else NO_MAIL_PARAMETERS


def parse_rcpt_parameters(text: bytes, offers: Offers, *, smtputf8: bool = False) -> RcptParameters:
    """The parameters behind RCPT's path; `smtputf8` says whether UTF-8 may stand in them."""
    values: dict[str, object] = {}
    for keyword, value in _split(text):
        read = _RCPT_READERS.get(keyword)
        if not read or not offers.dsn:
            raise ParameterError(reply(555, "5.5.4", f"Parameter {keyword} is not known here"))
        if not smtputf8 and not value.isascii():
            raise _malformed(keyword)
        values |= read(value)
    return msgspec.structs.replace(NO_RCPT_PARAMETERS, **values) if values else NO_RCPT_PARAMETERS


def print_mail_parameters(parameters: MailParameters) -> bytes:
    """What stands behind MAIL's path: each parameter that is set, with a space in front; b"" when none is."""
    if parameters is NO_MAIL_PARAMETERS:
        return b""
    text = f" SIZE={parameters.size_bytes}" if parameters.size_bytes else ""
    if parameters.body is not BodyType.SEVEN_BIT:
        text += f" BODY={parameters.body}"
    if parameters.smtputf8:
        text += " SMTPUTF8"
    if parameters.ret is not Ret.DEFAULT:
        text += f" RET={parameters.ret}"
    if parameters.envelope_id:
        text += f" ENVID={encode_xtext(parameters.envelope_id)}"
    if parameters.auth:
        text += f" AUTH={encode_xtext(parameters.auth)}"
    return text.encode()


def print_rcpt_parameters(parameters: RcptParameters) -> bytes:
    """What stands behind RCPT's path. ORCPT is always ASCII: RFC 6533 3 gives a utf-8 address that form too."""
    if parameters is NO_RCPT_PARAMETERS:
        return b""
    text = ""
    if parameters.notify is not Notify.DEFAULT:
        text = " NOTIFY=" + ",".join(name for flag, name in _NOTIFY_NAMES if flag & parameters.notify)
    if parameters.original_recipient:
        kind, _, address = parameters.original_recipient.partition(";")
        encode = _encode_unitext if kind.lower() == "utf-8" else encode_xtext
        text += f" ORCPT={kind};{encode(address)}"
    return text.encode()


def encode_xtext(text: str) -> str:
    """`text` as xtext (RFC 3461 4): all but plain printable ASCII as +HH of its UTF-8 octets."""
    return _needs_xtext(lambda found: "".join(f"+{octet:02X}" for octet in found.group().encode()), text)


def decode_xtext(text: str) -> str:
    """The text behind xtext. ValueError when it is not in the grammar or not UTF-8."""
    if not _xtext(text):
        raise ValueError(f"{text!r} is not xtext")
    if "+" not in text:
        return text
    return _xtext_hex(lambda found: chr(int(found.group(1), 16)), text).encode("latin-1").decode()


def _encode_unitext(text: str) -> str:
    return _needs_unitext(lambda found: f"\\x{{{ord(found.group()):02X}}}", text)


def _decode_unitext(text: str) -> str:
    if not _unitext(text):
        raise ValueError(f"{text!r} is not a utf-8-addr-unitext")
    plain = _unitext_hex(lambda found: chr(int(found.group(1), 16)), text)
    plain.encode()  # a surrogate is no character: UnicodeEncodeError
    return plain


def _split(text: bytes) -> list[tuple[str, str]]:
    """Keyword in upper case and value ("" for none) of each parameter."""
    if not text.startswith(b" "):
        raise ParameterError(reply(501, "5.5.4", "A space must stand between the path and its parameters"))
    found: dict[str, str] = {}
    for word in text.split():
        match = _parameter(word)
        if not match:
            raise ParameterError(reply(501, "5.5.4", "A parameter is KEYWORD or KEYWORD=value"))
        keyword = match.group(1).decode().upper()
        if keyword in found:
            raise ParameterError(reply(501, "5.5.4", f"Parameter {keyword} is given twice"))
        try:
            found[keyword] = (match.group(2) or b"").decode()
        except UnicodeDecodeError as error:
            raise _malformed(keyword) from error
    return list(found.items())


def _malformed(keyword: str) -> ParameterError:
    return ParameterError(reply(501, "5.5.4", f"Parameter {keyword} has a malformed value"))


def _is_offered(keyword: str, offers: Offers) -> bool:
    match keyword:
        case "SIZE":
            return offers.size
        case "BODY":
            return offers.eight_bit_mime
        case "SMTPUTF8":
            return offers.smtputf8
        case "AUTH":
            return bool(offers.auth)
        case _:
            return offers.dsn


def _read_size(value: str) -> dict[str, object]:
    if not (value.isascii() and value.isdigit() and len(value) <= 20):  # RFC 1870 4
        raise _malformed("SIZE")
    return {"size_bytes": int(value)}


def _read_body(value: str) -> dict[str, object]:
    try:
        return {"body": BodyType(value.upper())}
    except ValueError as error:
        raise _malformed("BODY") from error


def _read_smtputf8(value: str) -> dict[str, object]:
    if value:
        raise _malformed("SMTPUTF8")
    return {"smtputf8": True}


def _read_ret(value: str) -> dict[str, object]:
    if value.upper() not in ("FULL", "HDRS"):
        raise _malformed("RET")
    return {"ret": Ret(value.upper())}


def _read_envelope_id(value: str) -> dict[str, object]:
    return {"envelope_id": _read_xtext("ENVID", value, ENVELOPE_ID_OCTETS)}


def _read_auth(value: str) -> dict[str, object]:
    return {"auth": _read_xtext("AUTH", value, VALUE_OCTETS)}


def _read_xtext(keyword: str, value: str, octets: int) -> str:
    """Decoded xtext without control characters: the value ends up in report fields."""
    try:
        text = decode_xtext(value)
    except ValueError as error:
        raise _malformed(keyword) from error
    if not text or len(value) > octets or _unprintable(text) or (keyword == "ENVID" and not text.isascii()):
        raise _malformed(keyword)
    return text


def _read_notify(value: str) -> dict[str, object]:
    notify = Notify.DEFAULT
    for word in value.upper().split(","):
        flag = _NOTIFY_FLAGS.get(word)
        if flag is None:
            raise _malformed("NOTIFY")
        notify |= flag
    if Notify.NEVER in notify and notify is not Notify.NEVER:
        raise _malformed("NOTIFY")
    return {"notify": notify}


def _read_original_recipient(value: str) -> dict[str, object]:
    kind, semicolon, encoded = value.partition(";")
    try:
        address = _decode_unitext(encoded) if kind.lower() == "utf-8" else decode_xtext(encoded)
    except (ValueError, OverflowError) as error:
        raise _malformed("ORCPT") from error
    if not _address_type(kind) or not address or len(value) > VALUE_OCTETS or _unprintable(address):
        raise _malformed("ORCPT")
    return {"original_recipient": f"{kind}{semicolon}{address}"}


_Reader = Callable[[str], dict[str, object]]
_MAIL_READERS: dict[str, _Reader] = {
    "SIZE": _read_size,
    "BODY": _read_body,
    "SMTPUTF8": _read_smtputf8,
    "RET": _read_ret,
    "ENVID": _read_envelope_id,
    "AUTH": _read_auth,
}
_RCPT_READERS: dict[str, _Reader] = {"NOTIFY": _read_notify, "ORCPT": _read_original_recipient}
_NOTIFY_NAMES = (
    (Notify.NEVER, "NEVER"),
    (Notify.SUCCESS, "SUCCESS"),
    (Notify.FAILURE, "FAILURE"),
    (Notify.DELAY, "DELAY"),
)
_NOTIFY_FLAGS = {name: flag for flag, name in _NOTIFY_NAMES}
