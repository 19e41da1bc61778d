"""`posthouse queue` and `posthouse why` on a queue that no server runs, and asking one that does."""

import asyncio
import base64
import json
import os
import re
import time
from pathlib import Path

import click.testing
import pytest

from posthouse.cli import queue as queue_command
from posthouse.cli.program import program
from posthouse.mail.envelope import queue_id_text
from posthouse.mail.message import Content, Message
from posthouse.smtp.event import DotForm
from posthouse.spool.sqlite import wall_clock
from spooling import accept, deferred, envelope, failed, message, relayed, sqlite_spool


class Place:
    """A data directory with a queue, and the command line on it."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "posthouse.toml"
        self.config.write_text(f'hostname = "mx.example.org"\ndata_dir = "{directory}/data"\n')
        self.data = directory / "data"
        self.shard = self.data / "spool" / "1"

    def run(self, *arguments: str, status: int = 0) -> str:
        result = click.testing.CliRunner().invoke(
            program, ["--config", str(self.config), *arguments], standalone_mode=False
        )
        found = result.return_value if result.exception is None else getattr(result.exception, "status", None)
        if found is None:
            found = getattr(result.exception, "exit_code", result.exception)
        assert (found or 0) == status, (result.exception, result.output)
        self.err = result.stderr
        return result.stdout + (result.exception.message if isinstance(result.exception, click.ClickException) else "")

    def json(self, *arguments: str, status: int = 0) -> dict:
        return json.loads(self.run(*arguments, "--json", status=status))

    def fill(self, *stored: Message, reverse_path: str = "sender@example.org", age: int = 0) -> list[str]:
        async def scene() -> list[str]:
            with sqlite_spool(self.shard) as spool:
                now = wall_clock() - age
                ids = [spool.new_queue_id() - (age << 20) for _ in stored]
                await accept(
                    spool,
                    *[
                        (envelope(i, "a@one.example", "b@two.example", arrived_at=now, reverse_path=reverse_path), m)
                        for i, m in zip(ids, stored, strict=True)
                    ],
                )
                return [queue_id_text(i) for i in ids]

        return asyncio.run(scene())

    def record(self, *fates: object) -> None:
        async def scene() -> None:
            with sqlite_spool(self.shard) as spool:
                spool.record(fates)  # type: ignore[arg-type]

        asyncio.run(scene())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def _number(text: str) -> int:
    from posthouse.mail.envelope import parse_queue_id

    return parse_queue_id(text)


def test_queue_of_a_server_that_never_ran_is_empty_and_stays_uncreated(place):
    assert place.run("queue", "list") == "The queue is empty.\n"
    assert place.json("queue", "list") == {"messages": [], "more": False, "after": None, "relay": "on"}
    assert place.json("queue", "list", "--summary") == {"destinations": []}
    assert not place.data.exists()


def test_looking_at_a_queue_creates_no_file(place):
    (one,) = place.fill(message())
    before = sorted(place.data.rglob("*"))
    place.run("queue", "list")
    place.run("queue", "show", one, "--headers")
    place.run("why", one)
    assert sorted(place.data.rglob("*")) == before


def test_list_shows_size_age_paths_last_reply_and_next_try(place):
    (one,) = place.fill(message(b"x" * 5000), age=3 * 3_600_000)
    place.record(deferred(_number(one), 0, next_at=wall_clock() + 10 * 60_000, attempts=3))
    text = place.run("queue", "list")
    assert one in text
    assert "5.0 kB" in text
    assert "3 h" in text
    assert "sender@example.org" in text
    assert "a@one.example  deferred, tried 3 times, next try in 9 min" in text
    assert "4.4.1 The next hop does not answer. (mx)" in text
    assert "b@two.example  queued, next try now" in text


def test_json_of_the_list_has_stable_keys(place):
    (one,) = place.fill(message())
    place.record(deferred(_number(one), 1, next_at=wall_clock() + 60_000))
    (entry,) = place.json("queue", "list")["messages"]
    assert set(entry) == {"queue_id", "arrived_at", "size", "reverse_path", "recipients"}
    first, second = entry["recipients"]
    assert set(first) == {"address", "state", "destination", "attempts", "next_try", "last", "grant"}
    assert first["last"] is None
    assert set(second["last"]) == {"at", "outcome", "status", "reason", "words", "remote", "reply"}
    assert first["grant"]["kind"] == "trusted-network"


def test_list_says_that_relaying_is_off(place):
    place.fill(message())
    assert "Relaying is off" not in place.run("queue", "list")
    assert place.json("queue", "list")["relay"] == "on"
    place.run("relay", "off")
    assert "Relaying is off" in place.run("queue", "list")
    assert place.json("queue", "list")["relay"] == "off"


def test_list_pages_by_key(place):
    ids = place.fill(*[message()] * 7)
    found, after = [], None
    while True:
        page = place.json("queue", "list", "--limit", "3", *(["--after", after] if after else []))
        found += [entry["queue_id"] for entry in page["messages"]]
        after = page["after"]
        if not page["more"]:
            break
    assert found == ids


def test_list_filters_by_destination_sender_age_and_state(place):
    (old,) = place.fill(message(), reverse_path="News@Lists.example", age=2 * 86_400_000)
    (new,) = place.fill(message())
    (null,) = place.fill(message(), reverse_path="@")
    place.record(deferred(_number(new), 0, next_at=wall_clock() + 60_000), relayed(_number(new), 1))

    def ids(*filters: str) -> list[str]:
        return [entry["queue_id"] for entry in place.json("queue", "list", *filters)["messages"]]

    assert ids() == [old, new, null]
    assert ids("--destination", "Two.example") == [old, null]
    assert ids("--reverse-path", "lists.EXAMPLE") == [old]
    assert ids("--from", "*@example.org") == [new]
    assert ids("--from", "<>") == [null]
    assert ids("--older", "1d") == [old]
    assert ids("--newer", "1d") == [new, null]
    assert ids("--state", "deferred") == [new]
    assert ids("--state", "held") == []
    assert ids("--state", "queued", "--newer", "1h") == [null]


def test_summary_counts_by_destination(place):
    place.fill(message(), message())
    assert [(d["destination"], d["recipients"]) for d in place.json("queue", "list", "--summary")["destinations"]] == [
        ("one.example", 2),
        ("two.example", 2),
    ]


def test_show_prints_the_content_as_its_recipient_gets_it(place):
    stuffed = b"Subject: dots\r\n\r\n..one\r\n...two\r\n"
    (one,) = place.fill(Message(b"Received: x\r\n", Content(len(stuffed), DotForm.STUFFED, False, (stuffed,))))
    document = place.json("queue", "show", one, "--content")
    assert base64.b64decode(document["content_base64"]) == b"Received: x\r\nSubject: dots\r\n\r\n.one\r\n..two\r\n"
    assert place.json("queue", "show", one, "--headers")["headers"] == "Received: x\r\nSubject: dots"
    assert "let in by trusted-network" in place.run("queue", "show", one)


def test_show_of_what_is_not_queued_is_a_no(place):
    place.fill(message())
    assert "not in the queue" in place.run("queue", "show", "2d33mfht03qnh", status=1)
    place.run("queue", "show", "no-such-id", status=2)


def test_remote_words_cannot_steer_the_terminal(place):
    (one,) = place.fill(message())
    fate = deferred(_number(one), 0, next_at=wall_clock() + 60_000)
    import msgspec

    outcome = msgspec.structs.replace(fate.outcome, diagnostic="451 \x1b[2J\x07 gone \udce9")
    place.record(msgspec.structs.replace(fate, outcome=outcome))
    for text in (place.run("queue", "list"), place.run("why", one)):
        assert "\x1b" not in text
        assert r"451 \x1b[2J\x07 gone \udce9" in text


def test_acts_without_a_server_change_the_queue(place):
    one, two, three = place.fill(message(), message(), message())
    assert place.json("queue", "hold", one, two) == {"changed": [one, two], "unchanged": []}
    assert "1 message released.\n" in place.run("queue", "release", one)
    assert place.json("queue", "release", one, status=1) == {"changed": [], "unchanged": [one]}
    assert [e["queue_id"] for e in place.json("queue", "list", "--state", "held")["messages"]] == [two]
    assert place.json("queue", "reroute", "--to", "smtp://10.0.0.5:25", "--destination", "two.example")["changed"] == [
        one,
        two,
        three,
    ]
    assert place.json("queue", "bounce", three)["changed"] == [three]
    states = [r["state"] for r in place.json("queue", "show", three)["recipients"]]
    assert states == ["bouncing", "bouncing"]
    assert place.json("queue", "delete", "--all")["changed"] == [one, two, three]
    assert place.json("queue", "list")["messages"] == []


def test_acts_want_to_know_on_what(place):
    (one,) = place.fill(message())
    place.run("queue", "delete", status=2)
    place.run("queue", "delete", one, "--all", status=2)
    place.run("queue", "reroute", one, status=2)
    place.run("queue", "reroute", one, "--to", "gopher://x", status=2)
    place.run("queue", "hold", "--older", "soon", status=2)
    assert len(place.json("queue", "list")["messages"]) == 1


def test_acts_go_through_a_running_server(place, monkeypatch):
    one, two = place.fill(message(), message())
    asked = []

    def ask(data_dir: Path, verb: str, **arguments: object) -> dict[str, object]:
        asked.append((data_dir, verb, arguments.get("ids"), arguments.get("next_hop"), arguments.get("destination")))
        return {} if verb == "status" else {"ids": [one]}

    monkeypatch.setattr(queue_command, "ask", ask)
    assert place.json("queue", "hold", one, two, status=1) == {"changed": [one], "unchanged": [two]}
    place.run("queue", "reroute", "--to", "smtp://10.0.0.5", "--destination", "one.example")
    assert [a for a in asked if a[1] != "status"] == [
        (place.data, "queue-hold", [one, two], None, None),
        (place.data, "queue-reroute", [one, two], "smtp://10.0.0.5", "one.example"),
    ]


def test_queue_in_use_by_another_process_is_said_with_its_pid(place):
    async def scene() -> str:
        with sqlite_spool(place.shard):
            return place.run("queue", "hold", "--all", status=2)

    place.fill(message())
    assert f"in use by process {os.getpid()}" in asyncio.run(scene())


def test_why_tells_who_by_what_right_each_attempt_and_the_end(place):
    (one,) = place.fill(message())
    number = _number(one)
    place.record(deferred(number, 0, next_at=wall_clock() + 60_000), relayed(number, 1))
    text = place.run("why", one)
    assert "accepted from 192.0.2.7 (client.example) by ESMTPSA logged in as alice" in text
    assert "a@one.example: let in by trusted-network: 192.0.2.7 is in the trusted network 192.0.2.0/24." in text
    assert "a@one.example: deferred: 4.4.1 The next hop does not answer. (mx)" in text
    assert "b@two.example: relayed: 250 ok (mx.example.net [192.0.2.9]:25)" in text
    assert "now  a@one.example: deferred, tried once, next try in" in text
    place.run("queue", "hold", one)
    place.record(failed(number, 0))
    text = place.run("why", one)
    assert "an operator: hold (a@one.example)" in text
    assert "a@one.example: failed: 550 5.1.1 no (mx)" in text
    assert text.endswith("It has left the queue.\n")
    document = place.json("why", one)
    assert document["state"] == "done"
    assert [r["state"] for r in document["recipients"]] == ["failed", "relayed"]
    assert [e["event"] for e in document["events"]] == ["accepted", "attempt", "attempt", "operator", "attempt"]


def test_why_of_the_unknown_is_a_no(place):
    place.fill(message())
    assert "nothing is known" in place.run("why", "2d33mfht03qnh", status=1)
    place.run("why", "aeou!", status=2)


def test_why_without_an_id_lists_what_was_accepted_last_whether_queued_or_gone(place):
    assert "No message was accepted" in place.run("why")
    assert place.json("why") == {"messages": []}
    old = place.fill(*[message()] * 3, age=3_600_000)
    new = place.fill(*[message()] * 9)
    place.record(relayed(_number(new[-1]), 0), failed(_number(new[-1]), 1))
    lines = place.run("why").splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*reversed(new), old[-1]]
    assert lines[0].endswith("sender@example.org")
    assert lines[1:3] == ["    a@one.example: relayed", "    b@two.example: failed"]
    assert lines[4] == "    a@one.example: queued"
    found = place.json("why")["messages"]
    assert [each["queue_id"] for each in found] == [*reversed(new), old[-1]]
    assert set(found[0]) == {"queue_id", "state", "events", "recipients"}


def test_times_for_people_name_their_zone(place, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        (one,) = place.fill(message())
        assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0[12]00  accepted", place.run("why", one), re.MULTILINE)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_not_in_the_queue_is_told_apart_from_what_is_not_known(place):
    (one,) = place.fill(message())
    assert "not in the queue, and nothing is known of it" in place.run("queue", "show", "2d33mfht03qnh", status=1)
    place.run("queue", "delete", one)
    assert f"`posthouse why {one}` tells what became of it" in place.run("queue", "show", one, status=1)


def test_an_act_that_changes_nothing_says_why(place):
    (one,) = place.fill(message())

    def refused(verb: str, *more: str) -> str:
        place.run("queue", verb, one, *more, status=1)
        return place.err

    assert f"{one}: it is not held" in refused("release")
    place.run("queue", "hold", one)
    assert f"{one}: it is held already" in refused("hold")
    assert f"{one}: it is held: `posthouse queue release {one}`" in refused("retry")
    place.run("queue", "delete", one)
    assert "not in the queue any more" in refused("retry")


def test_acts_that_cannot_send_now_say_that_relaying_is_off(place):
    (one,) = place.fill(message())
    assert "Relaying is off" not in place.run("queue", "retry", one)
    place.run("relay", "off")
    assert "Relaying is off" in place.run("queue", "retry", one)
    assert "Relaying is off" not in place.run("queue", "hold", one)
