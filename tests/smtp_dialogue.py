"""Reads dialogue files (tests/dialogues/README.md) and plays them against the server engine."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from posthouse.smtp.event import (
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Credentials,
    Event,
    MailFrom,
    RcptTo,
)
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import Dialect, Ending, ServerSettings
from smtp_talk import Talk, agree, joined

DIALOGUES = Path(__file__).parent / "dialogues"
Split = Callable[[bytes], Iterator[bytes]]


class Answer(msgspec.Struct):
    """How the handler answers an event."""

    event: str
    text: str
    reply: Reply


class Dialogue(msgspec.Struct):
    """One file. `turns` are the client's octets between TLS handshakes, `replies` what each line of the server begins with."""

    name: str
    settings: ServerSettings
    answers: list[Answer]
    turns: list[bytes]
    replies: list[str]
    events: list[str]
    ending: Ending
    content: bytes | None


class Outcome(msgspec.Struct):
    """What came of a dialogue; equal for all ways to cut the client's octets."""

    lines: list[str]
    events: list[Event]
    ending: Ending
    content: bytes


def read_dialogue(path: Path) -> Dialogue:
    """One file as a Dialogue."""
    settings: dict[str, object] = {"hostname": "mx.example.org"}
    dialogue = Dialogue(path.stem, ServerSettings(""), [], [b""], ["220 mx.example.org"], [], Ending.NOT_YET, None)
    for line in path.read_text("utf-8").splitlines():
        kind, text = line[:2], line[3:]
        match kind:
            case "C:":
                dialogue.turns[-1] += text.encode() + b"\r\n"
            case "C+":
                dialogue.turns[-1] += _unescape(text)
            case "S:":
                dialogue.replies.append(text)
            case "T:":
                dialogue.turns.append(b"")
            case "E:":
                dialogue.events.append(text)
            case "A:":
                dialogue.answers.append(_read_answer(text))
            case "@ ":
                settings |= tomllib.loads(line[2:])
            case "= ":
                word, _, rest = line[2:].partition(" ")
                if word == "content":
                    dialogue.content = _unescape(rest)
                else:
                    dialogue.ending = {"open": Ending.NOT_YET, "close": Ending.CLOSE, "drain": Ending.DRAIN}[word]
            case _ if line and not line.startswith("#"):
                raise ValueError(f"{path.name}: what is {line!r}?")
    settings["auth_mechanisms"] = tuple(settings.get("auth_mechanisms", ()))
    settings["dialect"] = Dialect(settings.get("dialect", "SMTP"))
    dialogue.settings = ServerSettings(**settings)
    return dialogue


def play(dialogue: Dialogue, split: Split) -> Outcome:
    """Plays the client's side, cut as `split` says."""
    talk = Talk(dialogue.settings, lambda event: _answer(dialogue, event))
    sent = talk.greeting
    for number, turn in enumerate(dialogue.turns):
        if number:
            talk.engine.tls_started()
        for piece in split(turn):
            talk.say(piece)
    sent += talk.sent
    events = joined(talk.events)
    return Outcome(sent.decode().splitlines(), events, talk.engine.ending, _accepted_content(dialogue, events))


def _accepted_content(dialogue: Dialogue, events: list[Event]) -> bytes:
    accepted = current = b""
    for event in events:
        if isinstance(event, ContentPiece):
            current += event.data
        elif isinstance(event, ContentBroken):
            current = b""
        elif isinstance(event, ContentComplete):
            accepted += current if _answer(dialogue, event).is_positive else b""
            current = b""
    return accepted


def _answer(dialogue: Dialogue, event: Event) -> Reply:
    match event:
        case MailFrom():
            name, text = "MAIL", str(event.reverse_path)
        case RcptTo():
            name, text = "RCPT", str(event.forward_path)
        case ContentWanted():
            name, text = "DATA", ""
        case ContentComplete():
            name, text = "CONTENT", ""
        case Credentials():
            name, text = "AUTH", f"{event.login} {event.password}"
        case _:
            raise AssertionError(event)
    for answer in dialogue.answers:
        if answer.event == name and answer.text in ("", text):
            return answer.reply
    return agree(event)


def _read_answer(text: str) -> Answer:
    what, _, answer = text.partition(" = ")
    event, _, detail = what.partition(" ")
    code, _, words = answer.partition(" ")
    enhanced, _, words = words.partition(" ")
    return Answer(event, detail, Reply(int(code), enhanced, (words,)))


def _unescape(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")
