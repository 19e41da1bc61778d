"""`posthouse queue`: looks at the queue and acts on it, running server or not."""

import base64
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from posthouse.cli import queue_text
from posthouse.cli.faults import plain_faults
from posthouse.cli.options import ExitStatus, as_typed, config_option, fail, json_option, print_json
from posthouse.cli.progress import sign_of_life
from posthouse.config import find_local
from posthouse.config.values import duration
from posthouse.mail.envelope import parse_queue_id, queue_id_text, shard_of
from posthouse.mail.header import header_of_pieces
from posthouse.relay.route import RouteError, parse_hop
from posthouse.serve.control import ServerNotRunning, ask
from posthouse.serve.data_dir import DataDir, RelayOption
from posthouse.spool import inspect
from posthouse.spool.api import Verb
from posthouse.spool.clock import wall_clock
from posthouse.spool.inspect import Filter, State
from posthouse.spool.operate import act_without_server, become_owner
from posthouse.spool.verify import verify as verify_queue
from posthouse.transports.final import plain_pieces

F = TypeVar("F", bound=Callable[..., Any])
_AT_ONCE = 500  # messages of one request to the server: an answer within a moment each
_STATES = [state.value for state in State if state is not State.SETTLED]


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A length of time (30s, 5m, 4h, 5d) in milliseconds; a usage error for anything else."""
    if value is None:
        return None
    try:
        return int(duration(value) * 1000)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


class Wanted(msgspec.Struct, frozen=True):
    """The filter options of one call."""

    filter: Filter
    is_set: bool


def filter_options(command: F) -> F:
    """Adds --destination, --reverse-path, --older, --newer and --state, passed together as `wanted`."""

    def gathered(**values: Any) -> Any:
        destination, reverse_path = values.pop("destination"), values.pop("reverse_path")
        older, newer, state = values.pop("older"), values.pop("newer"), values.pop("state")
        now = wall_clock()
        which = Filter(
            destination.lower() if "://" not in destination else destination,
            reverse_path,
            now - newer if newer is not None else 0,
            now - older if older is not None else Filter().until,
            State(state) if state else None,
        )
        is_set = bool(destination or reverse_path or state) or older is not None or newer is not None
        return command(wanted=Wanted(which, is_set), **values)

    gathered.__name__ = command.__name__
    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    options = (
        click.option("--destination", default="", metavar="DOMAIN", help="Only mail for this domain, or rerouted to this next hop (URL)."),
        click.option(
            "--reverse-path", "--from", "reverse_path", default="", metavar="PATTERN",
            help="Only mail whose reverse-path holds this, or matches it as a pattern (*@example.org). <> is the null path.",
        ),
        click.option("--older", metavar="AGE", callback=_age, help="Only mail that arrived longer ago (4h, 5d)."),
        click.option("--newer", metavar="AGE", callback=_age, help="Only mail that arrived since (30m)."),
        click.option("--state", type=click.Choice(_STATES), default=None, help="Only mail with a recipient in this state."),
    )  # fmt: skip
    for option in reversed(options):
        option(gathered)
    return gathered  # type: ignore[return-value]


@click.group(name="queue", help="Look at the queue and act on it.")
def command() -> None:
    """The group; each subcommand finds the data directory by itself."""


@command.command(
    name="list", help="List queued mail, oldest first: size, age, reverse-path, recipients, last reply, next try."
)
@filter_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many messages.")
@click.option("--after", default="", metavar="QUEUE-ID", help="Go on behind this message.")
@click.option("--summary", is_flag=True, help="Count by destination instead.")
@config_option
@json_option
def list_(wanted: Wanted, limit: int, after: str, summary: bool, config_path: Path | None, as_json: bool) -> int:
    """0, also for an empty queue."""
    data_dir = find_local(config_path).data_dir
    if summary:
        return _print_summary(data_dir, as_json)
    with plain_faults():
        found = inspect.list_entries(data_dir, wanted.filter, limit + 1, _parse(after) if after else 0)
    page = found[:limit]
    last = queue_id_text(page[-1].queue_id) if len(found) > limit else None
    if as_json:
        messages = [queue_text.entry_json(entry) for entry in page]
        relay = DataDir(data_dir, -1).relay_option
        print_json({"messages": messages, "more": last is not None, "after": last, "relay": relay})
        return ExitStatus.DONE
    if not page:
        click.echo("No queued message matches." if wanted.is_set or after else "The queue is empty.")
        return ExitStatus.DONE
    now = wall_clock()
    click.echo(f"{'QUEUE-ID':<14} {'SIZE':>7}  {'AGE':>6}  REVERSE-PATH")
    for entry in page:
        _print_lines(queue_text.entry_lines(entry, now))
    if last is not None:
        click.echo(as_typed(f"There is more: `posthouse queue list --after {last}`"))
    _say_if_relay_is_off(data_dir)
    return ExitStatus.DONE


def _say_if_relay_is_off(data_dir: Path) -> None:
    if DataDir(data_dir, -1).relay_option is RelayOption.OFF:
        click.echo(as_typed("Relaying is off, so all but mail for local domains waits until `posthouse relay on`."))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(queue_text.printable(line))


def _print_summary(data_dir: Path, as_json: bool) -> int:
    with plain_faults():
        volumes = inspect.volumes(data_dir)
    if as_json:
        print_json({"destinations": [queue_text.volume_json(volume) for volume in volumes]})
    elif not volumes:
        click.echo("The queue is empty.")
    else:
        _print_lines(queue_text.volume_lines(volumes, wall_clock()))
    return ExitStatus.DONE


@command.command(help="Show one queued message: envelope, grants, where each recipient stands.")
@click.argument("queue_id", metavar="QUEUE-ID")
@click.option("--headers", is_flag=True, help="Print its trace and header fields too.")
@click.option("--content", is_flag=True, help="Print the whole message instead, as its recipient would get it.")
@config_option
@json_option
def show(queue_id: str, headers: bool, content: bool, config_path: Path | None, as_json: bool) -> int:
    """0 when it is queued, 1 when it isn't."""
    data_dir = find_local(config_path).data_dir
    number = _parse(queue_id)
    with plain_faults():
        entry = inspect.find(data_dir, number)
        if entry is None:
            fail(f"{queue_id}: {_what_became_of(data_dir, number)}", ExitStatus.NO)
        pieces = _message(data_dir, number) if headers or content else iter(())
        if as_json:
            return _show_json(entry, pieces, headers, content)
        if content:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return ExitStatus.DONE
        now = wall_clock()
        _print_lines(queue_text.entry_lines(entry, now))
        _print_lines(f"    {r.forward_path}: let in by {r.grant}: {r.words}" for r in entry.recipients)
        if headers:
            click.echo()
            _print_lines(_header(pieces).decode("utf-8", "backslashreplace").replace("\t", " ").split("\r\n"))
    return ExitStatus.DONE


def _what_became_of(data_dir: Path, queue_id: int) -> str:
    """Of a message that is not in the queue."""
    if inspect.events_of(data_dir / "spool" / str(shard_of(queue_id)), queue_id):
        return f"not in the queue any more; `posthouse why {queue_id_text(queue_id)}` tells what became of it"
    return "not in the queue, and nothing is known of it"


def _show_json(entry: inspect.Entry, pieces: Iterator[bytes], headers: bool, content: bool) -> int:
    document = queue_text.entry_json(entry)
    if content:
        document["content_base64"] = base64.b64encode(b"".join(pieces)).decode()
    elif headers:
        document["headers"] = _header(pieces).decode("utf-8", "backslashreplace")
    print_json(document)
    return ExitStatus.DONE


def _header(pieces: Iterator[bytes]) -> bytes:
    return header_of_pieces(pieces).removesuffix(b"\r\n")


def _message(data_dir: Path, queue_id: int) -> Iterator[bytes]:
    """The message as its recipient gets it, in pieces."""
    try:
        _, message = inspect.load(data_dir, queue_id)
    except KeyError:
        return
    yield message.trace
    yield from plain_pieces(message.content)


@command.command(help="Read the whole queue and hold it against its checksums; says what is damaged or missing.")
@config_option
@json_option
def verify(config_path: Path | None, as_json: bool) -> int:
    """0 when all is well, 1 when something is damaged or missing."""
    data_dir = find_local(config_path).data_dir
    with plain_faults(), sign_of_life("reading the queue"):
        found = verify_queue(data_dir)
    if as_json:
        damages = [
            {"shard": d.shard, "queue_id": queue_id_text(d.queue_id) if d.queue_id else None, "words": d.words}
            for d in found.damages
        ]
        print_json({"messages": found.messages, "size_bytes": found.size_bytes, "damages": damages})
    else:
        for damage in found.damages:
            about = queue_id_text(damage.queue_id) if damage.queue_id else f"shard {damage.shard}"
            click.echo(queue_text.printable(f"{about}: {damage.words}"))
        plural = "" if found.messages == 1 else "s"
        verdict = f"{len(found.damages)} things are wrong" if found.damages else "all is well"
        click.echo(f"{found.messages} message{plural} read: {verdict}.")
    return ExitStatus.NO if found.damages else ExitStatus.DONE


_HELP = {
    Verb.HOLD: "Hold mail back until it is released.",
    Verb.RELEASE: "Release held mail: it is tried at once.",
    Verb.RETRY: "Try waiting mail now.",
    Verb.REROUTE: "Send waiting mail to another next hop (--to smtp://HOST:PORT).",
    Verb.BOUNCE: "Return mail to its sender as undeliverable.",
    Verb.DELETE: "Delete mail; nobody is told.",
}
_DONE = {
    Verb.HOLD: "held",
    Verb.RELEASE: "released",
    Verb.RETRY: "due now",
    Verb.REROUTE: "rerouted",
    Verb.BOUNCE: "to be returned to its sender",
    Verb.DELETE: "deleted",
}


def _act_command(verb: Verb) -> None:
    def act(
        queue_ids: tuple[str, ...],
        wanted: Wanted,
        everything: bool,
        config_path: Path | None,
        as_json: bool,
        next_hop: str = "",
    ) -> int:
        data_dir = find_local(config_path).data_dir
        if bool(queue_ids) + (wanted.is_set or everything) != 1:
            raise click.UsageError(f"say which mail to {verb.value}: queue ids, or filters, or --all")
        if verb is Verb.REROUTE:
            _check_next_hop(next_hop)
        numbers = [_parse(text) for text in queue_ids]
        with plain_faults():
            targets = numbers or inspect.matching_ids(data_dir, wanted.filter, 1 << 40)
            changed = _act(data_dir, verb, targets, wanted.filter.destination or None, next_hop)
            missed = {number: _why_unchanged(data_dir, verb, number) for number in numbers if number not in changed}
        status = _report(verb, changed, missed, as_json)
        if changed and not as_json and verb in (Verb.RELEASE, Verb.RETRY, Verb.REROUTE):
            _say_if_relay_is_off(data_dir)
        return status

    decorated: Callable[..., Any] = filter_options(act)
    decorated = click.argument("queue_ids", nargs=-1, metavar="[QUEUE-ID]...")(decorated)
    decorated = click.option("--all", "everything", is_flag=True, help="All queued mail.")(decorated)
    if verb is Verb.REROUTE:
        decorated = click.option(
            "--to", "next_hop", required=True, metavar="URL", help="The next hop: smtp://HOST:PORT, mx:NAME, lmtp:..."
        )(decorated)
    command.command(name=verb.value, help=_HELP[verb])(config_option(json_option(decorated)))


for _verb in Verb:
    _act_command(_verb)


def _act(data_dir: Path, verb: Verb, ids: Sequence[int], destination: str | None, next_hop: str) -> list[int]:
    """By the running server if there is one, else on the shards themselves."""
    changed: list[int] = []
    arguments: dict[str, Any] = {"destination": destination} if destination else {}
    if verb is Verb.REROUTE:
        arguments["next_hop"] = next_hop
    try:
        ask(data_dir, "status")
        with _progress(ids, verb) as chunks:
            for chunk in chunks:
                answer = ask(
                    data_dir, f"queue-{verb.value}", timeout=300.0, ids=[queue_id_text(i) for i in chunk], **arguments
                )
                changed += [parse_queue_id(text) for text in answer.get("ids", [])]
    except ServerNotRunning:
        become_owner(data_dir)
        changed += act_without_server(data_dir, verb, ids, destination=destination, next_hop=next_hop)
    return changed


def _check_next_hop(url: str) -> None:
    try:
        parse_hop(url)
    except RouteError as error:
        raise click.UsageError(f"--to {url}: {error}") from error


def _progress(ids: Sequence[int], verb: Verb) -> Any:
    chunks = [ids[at : at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE)]
    return click.progressbar(
        chunks, label=verb.value, file=sys.stderr, hidden=len(chunks) < 2 or not sys.stderr.isatty()
    )


def _report(verb: Verb, changed: list[int], missed: dict[int, str], as_json: bool) -> int:
    """`missed`: the messages that were named and left as they are, with the reason."""
    if as_json:
        unchanged = [queue_id_text(queue_id) for queue_id in missed]
        print_json({"changed": [queue_id_text(queue_id) for queue_id in sorted(changed)], "unchanged": unchanged})
    else:
        click.echo(f"{len(changed)} message{'' if len(changed) == 1 else 's'} {_DONE[verb]}.")
        for queue_id, words in missed.items():
            click.echo(as_typed(f"posthouse: {queue_id_text(queue_id)}: {words}"), err=True)
    return ExitStatus.NO if missed or not changed else ExitStatus.DONE


def _why_unchanged(data_dir: Path, verb: Verb, queue_id: int) -> str:
    entry = inspect.find(data_dir, queue_id)
    if entry is None:
        return _what_became_of(data_dir, queue_id)
    states = {recipient.state for recipient in entry.recipients} - {State.SETTLED}
    if states == {State.HELD} and verb in (Verb.HOLD, Verb.RETRY):
        return (
            "it is held already"
            if verb is Verb.HOLD
            else f"it is held: `posthouse queue release {queue_id_text(queue_id)}`"
        )
    if verb is Verb.RELEASE and State.HELD not in states:
        return "it is not held"
    return f"there is nothing in it to {verb.value}"


def _parse(text: str) -> int:
    try:
        return parse_queue_id(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is not a queue id; `posthouse queue list` shows them") from None
