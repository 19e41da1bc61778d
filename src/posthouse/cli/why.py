"""`posthouse why QUEUE-ID`: the recorded history of one message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from posthouse.cli.faults import plain_faults
from posthouse.cli.options import ExitStatus, config_option, fail, json_option, print_json
from posthouse.cli.queue_text import (
    address,
    attempt_json,
    local_time,
    printable,
    reply_line,
    size,
    standing,
    timestamp,
)
from posthouse.config import find_local
from posthouse.mail.envelope import Origin, arrival_of, parse_queue_id, queue_id_text, shard_of
from posthouse.spool import inspect
from posthouse.spool.clock import wall_clock
from posthouse.spool.record import Accepted, Acted, Attempted, HistoryEvent, Withdrawn

_LAST = 10
"""Messages that are listed when none is named."""


@click.command(name="why", help="Tell the recorded history of one message.")
@click.argument("queue_id", metavar="[QUEUE-ID]", required=False)
@config_option
@json_option
def command(queue_id: str | None, config_path: Path | None, as_json: bool) -> int:
    """0 when something is known of the message, 1 when nothing is. Without an id: the last ten messages, newest first."""
    data_dir = find_local(config_path).data_dir
    if queue_id is None:
        return _print_last(data_dir, as_json)
    try:
        number = parse_queue_id(queue_id)
    except ValueError:
        raise click.UsageError(f"{queue_id!r} is not a queue id") from None
    with plain_faults():
        events = inspect.events_of(data_dir / "spool" / str(shard_of(number)), number)
        entry = inspect.find(data_dir, number)
    if not events and entry is None:
        fail(
            f"nothing is known of {queue_id}: it was never here, or longer ago than the history goes back",
            ExitStatus.NO,
        )
    if as_json:
        print_json(_document(number, events, entry))
    else:
        for line in _lines(number, events, entry):
            click.echo(printable(line))
    return ExitStatus.DONE


def _print_last(data_dir: Path, as_json: bool) -> int:
    with plain_faults():
        known = [
            (number, inspect.events_of(directory, number), inspect.find(data_dir, number))
            for directory, number in inspect.last_ids(data_dir, _LAST)
        ]
    if as_json:
        print_json({"messages": [_document(*one) for one in known]})
    elif not known:
        click.echo("No message was accepted as far as the history goes back.")
    for number, events, entry in known if not as_json else ():
        for line in _short_lines(number, events, entry):
            click.echo(printable(line))
    return ExitStatus.DONE


def _short_lines(number: int, events: list[HistoryEvent], entry: inspect.Entry | None) -> Iterator[str]:
    accepted = next((event for event in events if isinstance(event, Accepted)), None)
    reverse_path = address(accepted.reverse_path) if accepted else address(entry.reverse_path) if entry else "unknown"
    yield f"{queue_id_text(number)}  {local_time(arrival_of(number))}  {reverse_path}"
    for recipient in _recipients_json(events, entry):
        yield f"    {recipient['address']}: {recipient['state']}"


def _lines(number: int, events: list[HistoryEvent], entry: inspect.Entry | None) -> Iterator[str]:
    names = _names(events, entry)
    yield f"{queue_id_text(number)}"
    for event in events:
        at = local_time(event.at)
        match event:
            case Accepted():
                yield f"{at}  accepted from {_submitter(event.origin)}"
                yield f"    {size(event.size_bytes)}, reverse-path {address(event.reverse_path)}"
                for recipient in event.recipients:
                    yield f"    {recipient.forward_path}: let in by {recipient.grant}: {recipient.words}"
            case Attempted():
                yield f"{at}  {names(event.recipient)}: {event.outcome}: {reply_line(event)}"
                if event.diagnostic:
                    yield f"    {event.status} {event.words}"
                if event.next_at:
                    yield f"    next try at {local_time(event.next_at)}"
            case Acted():
                whom = ", ".join(names(n) for n in event.recipients)
                yield f"{at}  an operator: {event.verb}{f' to {event.argument}' if event.argument else ''} ({whom})"
            case Withdrawn():
                yield f"{at}  not stored after all: {event.words}; the client was told so"
    yield from _end_lines(events, entry)


def _end_lines(events: list[HistoryEvent], entry: inspect.Entry | None) -> Iterator[str]:
    if entry is not None:
        for recipient in entry.recipients:
            if recipient.state is not inspect.State.SETTLED:
                yield f"now  {address(recipient.forward_path)}: {standing(recipient, wall_clock())}"
    elif _is_ended(events):
        yield "It has left the queue."
    else:
        yield "It is not in the queue, and no end is on record: it was never acknowledged, or its end was lost in a crash."


def _is_ended(events: list[HistoryEvent]) -> bool:
    """Every recipient is settled, or the message was withdrawn."""
    recipients: set[int] = set()
    settled: set[int] = set()
    for event in events:
        match event:
            case Accepted():
                recipients = set(range(len(event.recipients)))
            case Attempted() if not event.next_at:
                settled.add(event.recipient)
            case Acted(verb="delete"):
                settled |= set(event.recipients)
            case Withdrawn():
                return True
            case _:
                pass
    return bool(settled) and recipients <= settled


def _names(events: list[HistoryEvent], entry: inspect.Entry | None) -> Any:
    known: dict[int, str] = {}
    for event in events:
        if isinstance(event, Accepted):
            known = {n: recipient.forward_path for n, recipient in enumerate(event.recipients)}
    if entry is not None:
        known |= {recipient.index: recipient.forward_path for recipient in entry.recipients}
    return lambda n: known.get(n, f"recipient {n + 1}")


def _submitter(origin: Origin) -> str:
    if origin.local_uid >= 0:
        who = f"the local user with uid {origin.local_uid}"
    elif not origin.client:
        return "this server itself"
    else:
        who = origin.client + (f" ({origin.hello_name})" if origin.hello_name else "")
    parts = [who]
    if origin.protocol:
        parts.append(f"by {origin.protocol}")
    if origin.login:
        parts.append(f"logged in as {origin.login}")
    if origin.listener:
        parts.append(f"on {origin.listener}")
    if origin.tls:
        parts.append(f"under {origin.tls}")
    return " ".join(parts)


def _document(number: int, events: list[HistoryEvent], entry: inspect.Entry | None) -> dict[str, Any]:
    names = _names(events, entry)
    state = "queued" if entry is not None else "done" if _is_ended(events) else "unknown"
    return {
        "queue_id": queue_id_text(number),
        "state": state,
        "events": [_event_json(event, names) for event in events],
        "recipients": _recipients_json(events, entry),
    }


def _event_json(event: HistoryEvent, names: Any) -> dict[str, Any]:
    at = timestamp(event.at)
    match event:
        case Accepted():
            origin = event.origin
            return {
                "event": "accepted",
                "at": at,
                "client": origin.client,
                "hello_name": origin.hello_name,
                "protocol": origin.protocol,
                "tls": origin.tls,
                "login": origin.login,
                "local_uid": origin.local_uid if origin.local_uid >= 0 else None,
                "listener": origin.listener,
                "reverse_path": event.reverse_path,
                "size": event.size_bytes,
            }
        case Attempted():
            next_try = timestamp(event.next_at) if event.next_at else None
            return {"event": "attempt", "address": names(event.recipient), **attempt_json(event), "next_try": next_try}
        case Acted():
            return {
                "event": "operator",
                "at": at,
                "verb": event.verb,
                "argument": event.argument,
                "addresses": [names(n) for n in event.recipients],
            }
        case Withdrawn():
            return {"event": "withdrawn", "at": at, "words": event.words}


def _recipients_json(events: list[HistoryEvent], entry: inspect.Entry | None) -> list[dict[str, Any]]:
    """Each recipient with its grant and what it came to: queued, deferred, held, bouncing, or the last attempt's outcome."""
    found: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, Accepted):
            found = [
                {"address": r.forward_path, "grant": {"kind": r.grant, "words": r.words}, "state": "unknown"}
                for r in event.recipients
            ]
    if not found and entry is not None:
        found = [
            {"address": r.forward_path, "grant": {"kind": r.grant, "words": r.words}, "state": r.state.value}
            for r in entry.recipients
        ]
    for event in events:
        if isinstance(event, Attempted) and event.recipient < len(found):
            found[event.recipient]["state"] = event.outcome
        elif isinstance(event, Acted) and event.verb == "delete":
            for n in event.recipients:
                if n < len(found):
                    found[n]["state"] = "deleted"
    if entry is not None:
        for recipient in entry.recipients:
            if recipient.state is not inspect.State.SETTLED and recipient.index < len(found):
                found[recipient.index]["state"] = recipient.state.value
    return found
