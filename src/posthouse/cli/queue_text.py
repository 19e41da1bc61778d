"""How queued mail looks: to people, and as JSON with stable keys to programs."""

import time
from collections.abc import Iterator
from typing import Any

from posthouse.mail.envelope import queue_id_text
from posthouse.spool.inspect import Entry, EntryRecipient, State, Volume
from posthouse.spool.record import Attempted

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def timestamp(at_ms: int) -> str:
    """A moment for programs: RFC 3339 in UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at_ms / 1000))}.{at_ms % 1000:03d}Z"


def local_time(at_ms: int) -> str:
    """A moment for people, in the machine's time zone, which is named: the log of a server has UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at_ms / 1000))


def span(milliseconds: int) -> str:
    """A length of time in its largest whole unit: "12 min"."""
    seconds = max(milliseconds, 0) // 1000
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "0 s"


def size(octets: int) -> str:
    """A size for people: "4.1 kB"."""
    if octets < 1000:
        return f"{octets} B"
    amount = octets / 1000
    for unit in ("kB", "MB"):
        if amount < 999.5:
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def address(path: str) -> str:
    """A path for people; the null path has no other name."""
    return path or "<>"


def printable(line: str) -> str:
    """A line in which nothing steers the terminal: a remote server's words are its own, and may hold escape sequences."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def entry_lines(entry: Entry, now: int) -> Iterator[str]:
    """One message of the list: a line, and for each recipient what became of it so far."""
    yield (
        f"{queue_id_text(entry.queue_id):<14} {size(entry.size_bytes):>7}  {span(now - entry.arrived_at):>6}  "
        f"{address(entry.reverse_path)}"
    )
    for recipient in entry.recipients:
        yield f"    {address(recipient.forward_path)}  {standing(recipient, now)}"
        if recipient.last is not None:
            yield f"        {reply_line(recipient.last)}, {span(now - recipient.last.at)} ago"


def standing(recipient: EntryRecipient, now: int) -> str:
    """Where a recipient stands, and when it is tried next."""
    tried = f", tried {recipient.attempts} times" if recipient.attempts > 1 else ", tried once"
    tried = tried if recipient.attempts else ""
    via = "" if recipient.forward_path.endswith(f"@{recipient.destination}") else f" by {recipient.destination}"
    match recipient.state:
        case State.HELD:
            return f"held{tried}{via}"
        case State.BOUNCING:
            return "to be returned to its sender"
        case State.SETTLED:
            return f"settled{tried}"
    wait = recipient.next_at - now
    return f"{recipient.state.value}{tried}, next try {f'in {span(wait)}' if wait >= 1000 else 'now'}{via}"


def reply_line(last: Attempted) -> str:
    """What the last attempt brought: the reply as given where there is one, else our own words; and who said so."""
    said = " ".join(last.diagnostic.split()) or f"{last.status} {last.words}"
    return f"{said} ({last.remote})" if last.remote and last.remote not in said else said


def volume_lines(volumes: list[Volume], now: int) -> Iterator[str]:
    """The summary by destination."""
    yield f"{'RECIPIENTS':>10} {'DEFERRED':>9} {'HELD':>6}  {'OLDEST':>7}  DESTINATION"
    for volume in volumes:
        yield (
            f"{volume.recipients:>10} {volume.deferred:>9} {volume.held:>6}  {span(now - volume.oldest_at):>7}  "
            f"{volume.destination or '(postmaster)'}"
        )


def entry_json(entry: Entry) -> dict[str, Any]:
    """One message for programs."""
    return {
        "queue_id": queue_id_text(entry.queue_id),
        "arrived_at": timestamp(entry.arrived_at),
        "size": entry.size_bytes,
        "reverse_path": entry.reverse_path,
        "recipients": [_recipient_json(recipient) for recipient in entry.recipients],
    }


def _recipient_json(recipient: EntryRecipient) -> dict[str, Any]:
    is_waiting = recipient.state not in {State.SETTLED, State.HELD}
    return {
        "address": recipient.forward_path,
        "state": recipient.state.value,
        "destination": recipient.destination,
        "attempts": recipient.attempts,
        "next_try": timestamp(recipient.next_at) if is_waiting else None,
        "last": attempt_json(recipient.last) if recipient.last is not None else None,
        "grant": {"kind": recipient.grant, "words": recipient.words},
    }


def attempt_json(attempt: Attempted) -> dict[str, Any]:
    """An attempt's end for programs."""
    return {
        "at": timestamp(attempt.at),
        "outcome": attempt.outcome,
        "status": attempt.status,
        "reason": attempt.slug,
        "words": attempt.words,
        "remote": attempt.remote,
        "reply": attempt.diagnostic,
    }


def volume_json(volume: Volume) -> dict[str, Any]:
    """One destination of the summary for programs."""
    return {
        "destination": volume.destination,
        "recipients": volume.recipients,
        "deferred": volume.deferred,
        "held": volume.held,
        "oldest": timestamp(volume.oldest_at),
        "next_try": timestamp(volume.next_at),
    }
