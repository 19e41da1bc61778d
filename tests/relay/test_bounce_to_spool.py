"""A notice on its whole way to disk: intake, SQLite spool, and back from it as the scheduler would read it."""

import asyncio
from pathlib import Path as FilePath
from types import SimpleNamespace

from posthouse.mail.dsn import Action
from posthouse.mail.dsn_reader import parse_report
from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Failed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.policy.rules import compile_rules
from posthouse.relay.bounce import Bouncer
from posthouse.relay.intake import Intake
from posthouse.smtp.address import Path
from posthouse.smtp.dots import plain
from posthouse.smtp.event import DotForm, Ret
from spooling import NOW, sqlite_spool

GRANT = restore_grant("trusted-network", "trusted-network", "a test")
REFUSED = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, "Refused."), "mx.example.net [192.0.2.1]:25", "550 5.1.1 No")


def test_a_notice_about_dotted_8bit_mail_is_durable_when_done_is_called(tmp_path: FilePath) -> None:
    octets = b"Subject: \xc3\xa9t\xc3\xa9\r\n\r\n..one dot\r\n\xff\r\n"
    recipient = Recipient(Path("jörg".encode(), "example.net"), GRANT)
    origin = Origin("192.0.2.7", "UTF8SMTP")
    sender = Path(b"ann", "example.org")
    about = Envelope(5, sender, (recipient,), origin, NOW, smtputf8=True, ret=Ret.FULL)
    message = Message(b"Received: by mx\r\n", Content(len(octets), DotForm.STUFFED, True, (octets,)))

    async def scenario() -> None:
        added: list[Envelope] = []
        with sqlite_spool(tmp_path / "1", clock=lambda: NOW) as spool:
            scheduler = SimpleNamespace(add=lambda envelope, _: added.append(envelope))
            intake = Intake(spool, scheduler, lambda: NOW)  # type: ignore[arg-type]
            bouncer = Bouncer("mx.example.org", intake, compile_rules, lambda: NOW)
            done = asyncio.Event()
            bouncer.send(about, message, [(0, REFUSED)], 0, done.set)
            assert not done.is_set()
            await asyncio.wait_for(done.wait(), 10)
            waiting = spool.due("example.org", NOW, 10)
            assert [each.index for each in waiting] == [0]
            envelope, stored = spool.load(waiting[0].queue_id)
        assert envelope.reverse_path.is_null
        assert envelope.recipients[0].forward_path == sender
        assert envelope.smtputf8
        assert added == [envelope]
        assert stored.content.dots is DotForm.STUFFED
        report = parse_report(stored.trace + b"".join(stored.content.pieces))
        assert report is not None
        assert report.recipients[0].action is Action.FAILED
        assert report.recipients[0].final_recipient == "utf-8;jörg@example.net"
        assert report.original == message.trace + octets
        assert b"\r\n.one dot\r\n" in plain(b"".join(stored.content.pieces), stored.content.dots)

    asyncio.run(scenario())
