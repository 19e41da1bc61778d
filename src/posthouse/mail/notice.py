"""The part of a delivery status notification that people read: what happened, to whom, why, and what they can do.

Plain sentences, no codes but the next hop's own words; the Reason's sentence stands here as in the log and in
`posthouse why`. Nothing in this module knows MIME.
"""

import enum
import re
import textwrap
from typing import Final

import msgspec

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NOT_ASCII: Final = re.compile("[^\x00-\x7f]")
_WIDTH: Final = 74


class Kind(enum.StrEnum):
    """The three notices that NOTIFY can ask for (RFC 3461 4.1)."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"


class RecipientNotice(msgspec.Struct, frozen=True):
    """One recipient as the text shows it; fields as in Outcome."""

    address: str
    status: str
    words: str
    remote: str = ""
    diagnostic: str = ""
    is_relayed: bool = False


class Notice(msgspec.Struct, frozen=True):
    """All that the text says. `arrived` and `retry_until` are RFC 5322 date-times, `retry_until` "" when not known."""

    kind: Kind
    hostname: str
    queue_id: str
    arrived: str
    retry_until: str
    recipients: tuple[RecipientNotice, ...]


def clean(text: str) -> str:
    """`text` without control characters and line ends: it stays in its line, in its field."""
    return _CONTROL.sub(" ", text).strip(" ")


def escape(text: str) -> str:
    r"""`text` in ASCII, other characters as `\x{F6}` (utf-8-addr-xtext, RFC 6533 3)."""
    return text if text.isascii() else _NOT_ASCII.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", text)


_ADVICE: Final[tuple[tuple[str, str], ...]] = (
    (".1.1", "Check the address for a typing error, or ask the recipient by another way for the right one."),
    (".1.2", "Check what stands behind the @: no such domain takes mail."),
    (".1.10", "This domain has declared that it takes no mail. Ask the recipient for another address."),
    (".1.7", "The other side does not accept your own address; ask your postmaster about it."),
    (".1.8", "The other side does not accept the domain of your own address; ask your postmaster about it."),
    (".1.", "Check the address, or ask the recipient by another way for the right one."),
    (".2.2", "The mailbox is full. Tell the recipient by another way, and send the message again later."),
    (".2.3", "The message is too large for the mailbox. Send it in smaller parts, or offer the file for fetching."),
    (".2.", "Tell the recipient by another way that the mailbox takes no mail."),
    (".3.4", "The message is too large for the other side. Send it in smaller parts, or offer the file for fetching."),
    (".4.6", "The mail went in a circle. Only a postmaster can mend that: pass this report on to yours."),
    (".4.", "If the address is right, the trouble lies between the servers. Send it again later, or ask your postmaster."),
    (".6.3", "The other side takes no 8-bit text. Send the message again with an encoding such as quoted-printable."),
    (".6.7", "The other side takes no address with letters beyond ASCII. Ask the recipient for another address."),
    (".7.", "The other side refuses the message by its rules. Its answer, if it gave one, says by which; "
            "the recipient or their postmaster can change that, we cannot."),
)  # fmt: skip


def advice(status: str) -> str:
    """What the originator of a failed message can do, by the status's subject and detail (RFC 3463 3)."""
    detail = status[1:]
    found = next((words for start, words in _ADVICE if detail == start), None)
    if found is None:
        found = next((words for start, words in _ADVICE if start.endswith(".") and detail.startswith(start)), None)
    return found or "If this does not tell you what to do, pass this report on to your postmaster."


def human_part(notice: Notice) -> str:
    """The text, lines ended by a newline and none beginning with a dot."""
    blocks = [f"This is the mail system at {clean(notice.hostname)}.", _opening(notice)]
    lines = [line for block in blocks for line in [*textwrap.wrap(block, _WIDTH), ""]]
    for recipient in notice.recipients:
        lines += [*_recipient_lines(recipient, notice.kind), ""]
    lines += textwrap.wrap(
        f"Your message reached us on {notice.arrived}; its queue id here is {notice.queue_id}. "
        f"The postmaster at {clean(notice.hostname)} can look it up by that id.",
        _WIDTH,
    )
    return "".join((" " + line if line.startswith(".") else line) + "\n" for line in lines)


def _opening(notice: Notice) -> str:
    many = len(notice.recipients) > 1
    whom = "the recipients below" if many else "the recipient below"
    if notice.kind is Kind.FAILURE:
        return f"Your message could not be delivered to {whom}, and it will not be tried again."
    if notice.kind is Kind.DELAY:
        until = f" until {notice.retry_until}" if notice.retry_until else ""
        return (
            f"Your message has not yet been delivered to {whom}. You need not send it again: it is kept and tried again"
            f"{until}, and if it cannot be delivered at all you will be told."
        )
    return f"You asked to be told: your message has reached {whom} as far as we can see."


def _recipient_lines(recipient: RecipientNotice, kind: Kind) -> list[str]:
    lines = [f"<{clean(recipient.address)}>"]
    if kind is Kind.SUCCESS:
        said = (
            "The message was handed to the next mail server, which sends no notices of its own. "
            "It is probably delivered; you may hear more only if it is not."
            if recipient.is_relayed
            else "The message was delivered to the mailbox."
        )
        return lines + _indented(said)
    words = clean(recipient.words)
    lines += _indented(words)
    answer = clean(recipient.diagnostic)
    if answer and answer not in words:
        who = clean(recipient.remote) or "The answer was"
        lines += _indented(f"{who} said: {answer}" if recipient.remote else f"{who}: {answer}")
    if kind is Kind.FAILURE:
        lines += _indented(advice(recipient.status))
    return lines


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
