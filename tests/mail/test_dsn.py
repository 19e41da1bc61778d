"""Delivery status notifications (RFC 3461, RFC 3464, RFC 6522, RFC 6533), read back by Python's email as the oracle."""

from collections.abc import Sequence
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.dsn import (
    Action,
    Kind,
    Original,
    Report,
    Reporting,
    compose_report,
    original_of,
    returns_whole,
    which_reports,
)
from posthouse.mail.dsn_reader import ReadReport, parse_report
from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, Message
from posthouse.mail.notice import advice
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import DotForm, Notify, Ret

ARRIVED = 1_795_559_554_321  # Tue, 24 Nov 2026 22:32:34 UTC
NOW = ARRIVED + 4 * 3_600_000
REPORTING = Reporting("mx.example.org", NOW, retry_until=ARRIVED + 5 * 86_400_000)
GRANT = restore_grant("trusted-network", "trusted-network", "a test")
ANN = Path(b"ann", "example.org")

REFUSED = Failed(
    "5.1.1",
    Reason(Slug.NEXT_HOP_REFUSED, "The next hop refused the recipient; ask its postmaster why."),
    "mx.example.net [192.0.2.1]:25",
    "550 5.1.1 No such user",
)
UNREACHED = Deferred("4.4.1", Reason(Slug.NEXT_HOP_UNREACHABLE, "No connection could be made; we try again."))
GIVEN_UP = Failed("4.4.7", Reason(Slug.EXPIRED, "Five days of trying were in vain."))
TOOK = Relayed("2.0.0", Reason(Slug.RELAYED, "The next hop took it."), "mx.example.net [192.0.2.1]:25", "250 Ok")
TOOK_WITH_DSN = Relayed("2.0.0", TOOK.reason, TOOK.remote, TOOK.diagnostic, speaks_dsn=True)
PUT = Delivered("2.0.0", Reason(Slug.DELIVERED, "Put into the mailbox."))


def envelope_to(*recipients: Recipient, reverse_path: Path = ANN, **more: object) -> Envelope:
    fields = {"queue_id": 0x1234567890ABC, "origin": Origin("192.0.2.7", "ESMTP"), "arrived_at": ARRIVED} | more
    return Envelope(reverse_path=reverse_path, recipients=recipients, **fields)  # type: ignore[arg-type]


def to(name: str, notify: Notify = Notify.DEFAULT, original_recipient: str = "") -> Recipient:
    return Recipient(Path(name.encode(), "example.net"), GRANT, notify, original_recipient)


HEADER = b"From: ann@example.org\r\nMessage-ID: <1@example.org>\r\nSubject: hello\r\n"
ORIGINAL = Original(HEADER, is_whole=False, dots=DotForm.NONE)


def composed(
    envelope: Envelope,
    results: Sequence[tuple[int, Outcome]],
    kind: Kind = Kind.FAILURE,
    original: Original | None = ORIGINAL,
) -> Report:
    report = compose_report(envelope, results, kind, original, REPORTING)
    assert report is not None
    return report


def octets_of(report: Report) -> bytes:
    assert report.content.size_bytes == len(b"".join(report.content.pieces))
    return b"".join(report.content.pieces)


def read_by_email(report: Report) -> EmailMessage:
    message = message_from_bytes(octets_of(report), policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    assert not any(part.defects for part in message.walk())
    return message


def read(report: Report) -> ReadReport:
    found = parse_report(octets_of(report))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("notify", "outcome", "kind"),
    [
        (Notify.DEFAULT, REFUSED, Kind.FAILURE),
        (Notify.DEFAULT, GIVEN_UP, Kind.FAILURE),
        (Notify.DEFAULT, UNREACHED, Kind.DELAY),
        (Notify.DEFAULT, TOOK, None),
        (Notify.DEFAULT, PUT, None),
        (Notify.NEVER, REFUSED, None),
        (Notify.NEVER, UNREACHED, None),
        (Notify.NEVER, TOOK, None),
        (Notify.NEVER, PUT, None),
        (Notify.FAILURE, REFUSED, Kind.FAILURE),
        (Notify.FAILURE, UNREACHED, None),
        (Notify.FAILURE, TOOK, None),
        (Notify.SUCCESS, REFUSED, None),
        (Notify.SUCCESS, UNREACHED, None),
        (Notify.SUCCESS, TOOK, Kind.SUCCESS),
        (Notify.SUCCESS, TOOK_WITH_DSN, None),
        (Notify.SUCCESS, PUT, Kind.SUCCESS),
        (Notify.DELAY, UNREACHED, Kind.DELAY),
        (Notify.DELAY, REFUSED, None),
        (Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, REFUSED, Kind.FAILURE),
        (Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, UNREACHED, Kind.DELAY),
        (Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, PUT, Kind.SUCCESS),
    ],
)
def test_notify_decides_which_report_is_owed(notify: Notify, outcome: Outcome, kind: Kind | None) -> None:
    due = which_reports(envelope_to(to("bob", notify)), [(0, outcome)])
    assert [each.kind for each in due] == ([] if kind is None else [kind])


def test_one_report_of_each_kind_names_all_its_recipients() -> None:
    envelope = envelope_to(to("a"), to("b", Notify.SUCCESS), to("c"), to("d", Notify.NEVER), to("e"))
    results = [(0, UNREACHED), (1, TOOK), (2, REFUSED), (3, REFUSED), (4, GIVEN_UP)]
    due = which_reports(envelope, results)
    assert [(each.kind, [index for index, _ in each.results]) for each in due] == [
        (Kind.FAILURE, [2, 4]),
        (Kind.DELAY, [0]),
        (Kind.SUCCESS, [1]),
    ]


def test_no_bounce_for_a_bounce() -> None:
    envelope = envelope_to(to("bob", Notify.SUCCESS | Notify.FAILURE | Notify.DELAY), reverse_path=NULL_PATH)
    assert which_reports(envelope, [(0, REFUSED)]) == ()
    for kind in Kind:
        assert compose_report(envelope, [(0, REFUSED)], kind, ORIGINAL, REPORTING) is None


def test_a_failure_report_is_a_multipart_report_as_another_parser_sees_it() -> None:
    envelope = envelope_to(to("bob", original_recipient="rfc822;Bob@alias.example"), envelope_id="QQ314159")
    report = composed(envelope, [(0, REFUSED)])
    assert report.reverse_path.is_null
    assert report.forward_path == ANN
    assert not report.smtputf8
    assert not report.content.is_8bit
    message = read_by_email(report)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["To"].addresses[0].addr_spec == "ann@example.org"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mx.example.org>"
    assert message["In-Reply-To"] == "<1@example.org>"
    assert message["Date"].datetime.timestamp() == NOW // 1000
    text, status, original = message.iter_parts()
    assert [text.get_content_type(), status.get_content_type(), original.get_content_type()] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]
    about_message, about_bob = status.iter_parts()
    assert dict(about_message.items()) == {
        "Original-Envelope-Id": "QQ314159",
        "Reporting-MTA": "dns; mx.example.org",
        "Arrival-Date": "Tue, 24 Nov 2026 22:32:34 +0000",
    }
    assert dict(about_bob.items()) == {
        "Original-Recipient": "rfc822;Bob@alias.example",
        "Final-Recipient": "rfc822;bob@example.net",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.net",
        "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
        "Last-Attempt-Date": "Wed, 25 Nov 2026 02:32:34 +0000",
        "Final-Log-ID": envelope.id_text,
        "X-Posthouse-Reason": "next-hop-refused",
    }
    assert original.get_content().encode().splitlines() == HEADER.splitlines()


def test_people_read_what_happened_why_and_what_to_do() -> None:
    text = read(composed(envelope_to(to("bob")), [(0, REFUSED)])).text.decode()
    words = " ".join(text.split())
    assert "<bob@example.net>" in text
    assert "could not be delivered" in words
    assert REFUSED.reason.words in words
    assert "mx.example.net [192.0.2.1]:25 said: 550 5.1.1 No such user" in words
    assert advice("5.1.1") in words
    assert envelope_to(to("bob")).id_text in words
    assert max(map(len, text.split("\r\n"))) <= 78


def test_a_reply_that_the_words_hold_already_is_not_said_twice() -> None:
    words = f"mx.example.net refused the recipient: {REFUSED.diagnostic}"
    outcome = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, words), REFUSED.remote, REFUSED.diagnostic)
    text = " ".join(read(composed(envelope_to(to("bob")), [(0, outcome)])).text.decode().split())
    assert text.count(REFUSED.diagnostic) == 1


@pytest.mark.parametrize(
    ("remote", "told"),
    [
        ("mx.example.net [192.0.2.1]:25", "dns; mx.example.net"),
        ("192.0.2.1 [192.0.2.1]:25", "dns; [192.0.2.1]"),
        ("2001:db8::1 [2001:db8::1]:25", "dns; [IPv6:2001:db8::1]"),
        ("/run/dovecot/lmtp", ""),
        ("", ""),
    ],
)
def test_the_next_hop_is_named_as_a_name_or_an_address_literal(remote: str, told: str) -> None:
    outcome = Failed("5.1.1", REFUSED.reason, remote, "550 no")
    assert read(composed(envelope_to(to("bob")), [(0, outcome)])).recipients[0].remote == told


@pytest.mark.parametrize(
    ("kind", "outcome", "action", "words"),
    [
        (Kind.FAILURE, REFUSED, Action.FAILED, "will not be tried again"),
        (Kind.FAILURE, GIVEN_UP, Action.FAILED, "Five days of trying were in vain."),
        (Kind.DELAY, UNREACHED, Action.DELAYED, "You need not send it again"),
        (Kind.SUCCESS, PUT, Action.DELIVERED, "delivered to the mailbox"),
        (Kind.SUCCESS, TOOK, Action.RELAYED, "handed to the next mail server"),
    ],
)
def test_each_kind_has_its_action_status_and_words(kind: Kind, outcome: Outcome, action: Action, words: str) -> None:
    found = read(composed(envelope_to(to("bob", Notify.SUCCESS)), [(0, outcome)], kind))
    (recipient,) = found.recipients
    assert recipient.action is action
    assert recipient.status == outcome.status
    assert words in " ".join(found.text.decode().split())
    assert bool(recipient.will_retry_until) == (kind is Kind.DELAY)
    if kind is Kind.DELAY:
        assert recipient.will_retry_until == "Sun, 29 Nov 2026 22:32:34 +0000"
        assert recipient.will_retry_until in " ".join(found.text.decode().split())


@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        (Kind.FAILURE, "4.4.7", "4.4.7"),
        (Kind.FAILURE, "2.0.0", "5.0.0"),
        (Kind.FAILURE, "nonsense", "5.0.0"),
        (Kind.FAILURE, "", "5.0.0"),
        (Kind.DELAY, "5.1.1", "4.0.0"),
        (Kind.SUCCESS, "5.1.1", "2.0.0"),
    ],
)
def test_a_status_that_contradicts_the_action_is_not_told(kind: Kind, status: str, told: str) -> None:
    outcome = Failed(status, REFUSED.reason)
    assert read(composed(envelope_to(to("bob")), [(0, outcome)], kind)).recipients[0].status == told


WHOLE_OCTETS = HEADER + b"\r\nline\r\n..dotted\r\n"


@pytest.mark.parametrize(
    ("ret", "kind", "size_bytes", "whole"),
    [
        (Ret.FULL, Kind.FAILURE, 100, True),
        (Ret.FULL, Kind.FAILURE, 50_001, False),
        (Ret.FULL, Kind.DELAY, 100, False),
        (Ret.FULL, Kind.SUCCESS, 100, False),
        (Ret.HEADERS, Kind.FAILURE, 100, False),
        (Ret.DEFAULT, Kind.FAILURE, 100, False),
    ],
)
def test_ret_decides_what_of_the_original_comes_back(ret: Ret, kind: Kind, size_bytes: int, whole: bool) -> None:
    assert returns_whole(envelope_to(to("bob"), ret=ret), kind, size_bytes) is whole


@pytest.mark.parametrize("dots", DotForm)
@pytest.mark.parametrize("whole", [False, True])
def test_the_original_is_attached_octet_for_octet_in_its_dot_form(dots: DotForm, whole: bool) -> None:
    content = WHOLE_OCTETS if dots is not DotForm.NONE else WHOLE_OCTETS.replace(b"..", b"")
    message = Message(b"Received: by mx\r\n", Content(len(content), dots, False, (content,)))
    original = original_of(message, content if whole else HEADER, is_whole=whole)
    report = composed(envelope_to(to("bob")), [(0, REFUSED)], original=original)
    assert report.content.dots is (dots if whole else DotForm.NONE)
    found = read(report)
    assert found.original == b"Received: by mx\r\n" + (content if whole else HEADER)
    assert found.original_type == ("message/rfc822" if whole else "text/rfc822-headers")


def test_only_the_original_brings_lines_that_begin_with_a_dot() -> None:
    words = Reason(Slug.NEXT_HOP_REFUSED, ". .dot " * 60)
    outcome = Failed("5.0.0", words, "mx", "550 " + ". .dot " * 60)
    report = composed(
        envelope_to(to(".bob", original_recipient="rfc822;.bob .x"), envelope_id=". .x " * 15), [(0, outcome)]
    )
    assert b"\r\n." not in octets_of(report)


def test_8bit_original_is_kept_and_declared() -> None:
    octets = b"Subject: \xe9t\xe9\r\n\r\n\xff\xfe\r\n"
    original = Original(octets, is_whole=True, dots=DotForm.NONE)
    report = composed(envelope_to(to("bob")), [(0, REFUSED)], original=original)
    assert report.content.is_8bit
    assert not report.smtputf8  # 8-bit octets are no internationalised address
    assert read(report).original == octets
    message = message_from_bytes(octets_of(report))
    assert message["Content-Transfer-Encoding"] == "8bit"


def test_a_report_without_its_original_has_two_parts() -> None:
    message = read_by_email(composed(envelope_to(to("bob")), [(0, REFUSED)], original=None))
    assert len(list(message.iter_parts())) == 2


def test_a_boundary_foreseen_by_the_author_is_avoided() -> None:
    envelope = envelope_to(to("bob"))
    foreseen = f"--=_posthouse.{envelope.id_text}.{NOW:x}\r\n".encode()
    octets = HEADER + b"\r\n" + foreseen + b"Content-Type: message/delivery-status\r\n\r\nAction: delivered\r\n"
    report = composed(envelope, [(0, REFUSED)], original=Original(octets, is_whole=True, dots=DotForm.NONE))
    found = read(report)
    assert found.original == octets
    assert found.recipients[0].action is Action.FAILED


@pytest.mark.parametrize("whole", [False, True])
def test_internationalised_addresses_get_the_global_types(whole: bool) -> None:
    joerg = Path("jörg".encode(), "xn--bcher-kva.example")
    envelope = envelope_to(
        Recipient(joerg, GRANT, original_recipient="utf-8;jörg@bücher.example"),
        reverse_path=Path("änne".encode(), "example.org"),
        smtputf8=True,
    )
    octets = "Subject: Grüße\r\n".encode() + (b"\r\nbody\r\n" if whole else b"")
    report = composed(envelope, [(0, REFUSED)], original=Original(octets, whole, DotForm.NONE))
    assert report.smtputf8
    assert report.content.is_8bit
    found = read(report)
    assert found.original_type == ("message/global" if whole else "message/global-headers")
    assert found.recipients[0].final_recipient == "utf-8;jörg@xn--bcher-kva.example"
    assert found.recipients[0].original_recipient == "utf-8;jörg@bücher.example"
    assert b"message/global-delivery-status" in octets_of(report)
    assert "To: <änne@example.org>\r\n".encode() in octets_of(report)
    assert "<jörg@xn--bcher-kva.example>" in found.text.decode()


def test_an_ascii_case_under_smtputf8_needs_none_in_its_report() -> None:
    report = composed(envelope_to(to("bob"), smtputf8=True), [(0, REFUSED)])
    assert not report.smtputf8
    assert read(report).original_type == "text/rfc822-headers"


def test_without_smtputf8_an_internationalised_original_recipient_is_told_in_ascii() -> None:
    report = composed(envelope_to(to("bob", original_recipient="utf-8;jörg@example.net")), [(0, REFUSED)])
    assert not report.smtputf8
    assert octets_of(report).isascii()
    assert read(report).recipients[0].original_recipient == "utf-8;j\\x{F6}rg@example.net"


_hostile = st.text(
    st.sampled_from('a.;:<>"\\ -\r\n\t\x00\x85\u2028\u00e9\udce9=_') | st.characters(), max_size=1200
) | st.lists(st.sampled_from(["\r\n", "\r\n\r\n", "--=_posthouse", "Action: delivered", "x" * 999, "."])).map("".join)


@given(_hostile, _hostile, _hostile, _hostile, _hostile, st.binary(max_size=64), st.booleans())
def test_nothing_a_stranger_says_forges_a_field_or_breaks_the_structure(
    envelope_id: str, orcpt: str, diagnostic: str, remote: str, words: str, local_part: bytes, smtputf8: bool
) -> None:
    recipient = Recipient(Path(local_part, "example.net"), GRANT, original_recipient=f"rfc822;{orcpt}")
    outcome = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, words), remote, diagnostic)
    envelope = envelope_to(recipient, envelope_id=envelope_id, smtputf8=smtputf8)
    report = composed(envelope, [(0, outcome)])
    octets = octets_of(report)
    lines = octets.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert all(b"\r" not in line and b"\n" not in line and b"\x00" not in line for line in lines)
    assert not any(line.startswith(b".") for line in lines)
    assert octets.isascii() or smtputf8
    found = read(report)
    assert len(found.recipients) == 1
    assert found.recipients[0].action is Action.FAILED
    assert found.original == HEADER
    message = message_from_bytes(octets, policy=policy.compat32)
    _, status, _ = message.get_payload()  # type: ignore[misc]
    if not smtputf8:
        about_message, about_recipient = status.get_payload()  # type: ignore[union-attr]
        assert set(about_message.keys()) <= {"Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"}
        assert about_recipient.keys().count("Action") == 1


@given(st.binary(max_size=600))
def test_any_original_is_returned_unharmed(octets: bytes) -> None:
    original = Original(octets, is_whole=True, dots=DotForm.STUFFED)
    report = composed(envelope_to(to("bob")), [(0, REFUSED)], original=original)
    assert read(report).original == octets


@given(st.binary(max_size=600))
def test_what_is_no_report_reads_as_none(octets: bytes) -> None:
    assert parse_report(octets) is None
    start = b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\n"
    parse_report(start + octets)  # whatever it says, it does not raise


def test_another_mta_s_report_is_read() -> None:
    octets = (
        b'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="B0/mail"\r\n\r\n'
        b"This is a MIME message.\r\n\r\n--B0/mail\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n\r\n"
        b"--B0/mail\r\nContent-Description: Delivery report\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; mail.example.com\r\nX-Postfix-Queue-ID: 4F\r\n\r\n"
        b"Final-Recipient: rfc822; bob@example.net\r\nAction: failed (host said no)\r\nStatus: 5.1.1 (unknown)\r\n"
        b"Diagnostic-Code: smtp; 550 no such\r\n    user\r\n\r\n"
        b"--B0/mail\r\nContent-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\nbody\r\n\r\n--B0/mail--\r\n"
    )
    found = parse_report(octets)
    assert found is not None
    assert found.reporting == "dns; mail.example.com"
    (recipient,) = found.recipients
    assert (recipient.action, recipient.status) == (Action.FAILED, "5.1.1")
    assert recipient.diagnostic == "smtp; 550 no such    user"
    assert found.original == b"Subject: x\r\n\r\nbody\r\n"
    assert found.text == b"Sorry.\r\n"


@pytest.mark.parametrize(
    ("status", "has"),
    [("5.1.1", "typing error"), ("4.4.7", "between the servers"), ("5.7.26", "by its rules"), ("5.0.0", "postmaster")],
)
def test_advice_fits_the_status(status: str, has: str) -> None:
    assert has in advice(status)
