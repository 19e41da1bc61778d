"""What replies mean, and what they don't."""

import itertools

import pytest

from posthouse.smtp.reply import ReplyReader
from posthouse.tester.case import CASES
from posthouse.tester.verdict import (
    Answer,
    CaseVerdict,
    Evidence,
    HostVerdict,
    Refusal,
    Stage,
    judge_case,
    judge_host,
    read_refusal,
)

PLAIN, NULL_SENDER, PERCENT = (next(case for case in CASES if case.number == number) for number in (101, 102, 201))
NOTICE = next(case for case in CASES if case.notice)
LOCAL = next(case for case in CASES if case.number == 601)


def reply(text):
    reader = ReplyReader()
    reader.receive_data(text.encode() + b"\r\n")
    return reader.next_reply()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        # As real servers say it to strangers at RCPT.
        ("554 5.7.1 <a@b.test>: Relay access denied", Refusal.RELAYING),  # Postfix
        ("454 4.7.1 <a@b.test>: Relay access denied", Refusal.RELAYING),  # Postfix as Debian delivers it
        ("550 relay not permitted", Refusal.RELAYING),  # Exim
        ("550 5.7.1 <a@b.test>... Relaying denied", Refusal.RELAYING),  # sendmail
        ("550 Invalid recipient: <a@b.test>", Refusal.RELAYING),  # OpenSMTPD
        ("550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain", Refusal.RELAYING),  # Exchange
        ("553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", Refusal.RELAYING),  # qmail
        ("513 Relaying denied.", Refusal.RELAYING),  # Courier
        ("550 5.7.1 relaying denied", Refusal.RELAYING),
        ("530 5.7.0 Authentication required", Refusal.RELAYING),
        ("501 5.1.3 Bad recipient address syntax", Refusal.RELAYING),
        # Not about relaying at all.
        ("450 4.2.0 <a@b.test>: Recipient address rejected: Greylisted, see http://x.test", Refusal.LATER),  # postgrey
        ("451 4.7.1 Please try again later", Refusal.LATER),
        ("452 4.3.1 Insufficient system storage", Refusal.LATER),
        ("421 4.3.2 Service shutting down", Refusal.LATER),
        ("450 4.7.1 relay-check temporarily unavailable, try again", Refusal.LATER),
        ("554 5.7.1 Service unavailable; Client host [192.0.2.9] blocked using bl.test", Refusal.CLIENT),
        ("450 4.3.2 Service currently unavailable", Refusal.LATER),  # postscreen
        ("550 5.3.2 Service unavailable", Refusal.CLIENT),
        ("450 4.7.25 Client host rejected: cannot find your hostname", Refusal.CLIENT),
        ("554 Too many nonmail commands", Refusal.CLIENT),
        ("504 5.5.2 <x>: Helo command rejected: need fully-qualified hostname", Refusal.HELLO),
        ("450 4.1.8 <a@b.test>: Sender address rejected: Domain not found", Refusal.SENDER),
        ("550 Sender verify failed", Refusal.SENDER),
        ("450 4.1.2 <a@b.test>: Recipient address rejected: Domain not found", Refusal.DOMAIN),
        (
            "556 5.1.10 <a@example.com>: Recipient address rejected: Domain example.com does not accept mail (nullMX)",
            Refusal.DOMAIN,
        ),
        # Our own address in a reply says nothing.
        ("550 5.1.2 <relay-test@relay.example.com>: Recipient address rejected: Domain not found", Refusal.DOMAIN),
        ("451 4.3.0 <relay@relay.test>: queue file write error", Refusal.LATER),
    ],
)
def test_refusals_at_rcpt_are_read_by_what_they_refuse(text, refusal):
    assert read_refusal(reply(text), Stage.RCPT) is refusal


@pytest.mark.parametrize(
    ("text", "stage", "refusal"),
    [
        ("554 no SMTP service here", Stage.GREETING, Refusal.CLIENT),
        ("421 busy", Stage.GREETING, Refusal.LATER),
        ("550 go away", Stage.HELLO, Refusal.HELLO),
        ("550 go away", Stage.MAIL, Refusal.SENDER),
        ("530 5.7.0 Must issue a STARTTLS command first", Stage.MAIL, Refusal.RELAYING),
        ("550 go away", Stage.RCPT, Refusal.RELAYING),
    ],
)
def test_what_is_said_before_rcpt_is_not_about_the_recipient(text, stage, refusal):
    assert read_refusal(reply(text), stage) is refusal


def answered(text, stage=Stage.RCPT):
    found = reply(text)
    return Answer(stage, found, read_refusal(found, stage) if found.code >= 400 else Refusal.RELAYING)


def test_only_the_collector_makes_an_acceptance_a_relaying():
    accepted = answered("250 ok", Stage.CONTENT)
    assert judge_case(PLAIN, accepted) is CaseVerdict.ACCEPTED
    assert judge_case(PLAIN, accepted, Evidence(True)) is CaseVerdict.NOT_DELIVERED
    assert judge_case(PLAIN, accepted, Evidence(True, probes=1)) is CaseVerdict.RELAYED
    assert judge_case(PLAIN, accepted, Evidence(True, is_known=False)) is CaseVerdict.UNKNOWN


def test_what_the_collector_has_counts_more_than_a_refusal():
    assert judge_case(PLAIN, answered("550 relaying denied"), Evidence(True, probes=1)) is CaseVerdict.RELAYED


def test_acceptance_at_rcpt_alone_is_no_verdict_but_for_a_mailbox_of_the_hosts_own():
    assert judge_case(PLAIN, answered("250 ok")) is CaseVerdict.UNKNOWN
    assert judge_case(LOCAL, answered("250 ok")) is CaseVerdict.LOCAL


def test_notice_to_the_third_party_is_backscatter_and_not_relaying():
    verdict = judge_case(NOTICE, answered("250 ok", Stage.CONTENT), Evidence(True, notices=1))
    assert verdict is CaseVerdict.BOUNCED
    rest = [(case.number, CaseVerdict.REFUSED) for case in CASES if not case.notice]
    assert judge_host(CASES, [*rest, (NOTICE.number, verdict)]) is HostVerdict.CLOSED


def test_refused_sender_decides_a_case_that_is_about_the_sender_and_no_other():
    refusal = answered("550 5.1.8 Sender address rejected")
    assert judge_case(NULL_SENDER, refusal) is CaseVerdict.REFUSED
    assert judge_case(PLAIN, refusal) is CaseVerdict.UNKNOWN


def test_host_is_closed_only_when_every_case_has_its_right_answer():
    refused = {case.number: CaseVerdict.REFUSED for case in CASES}
    assert judge_host(CASES, refused.items()) is HostVerdict.CLOSED
    for number, verdict in itertools.product((101, 201, 901), (CaseVerdict.UNKNOWN, CaseVerdict.NOT_DELIVERED)):
        assert judge_host(CASES, {**refused, number: verdict}.items()) is HostVerdict.UNKNOWN
    for verdict in (CaseVerdict.RELAYED, CaseVerdict.ACCEPTED):
        assert judge_host(CASES, {**refused, 301: verdict}.items()) is HostVerdict.OPEN
    del refused[101]
    assert judge_host(CASES, refused.items()) is HostVerdict.UNKNOWN


def test_nothing_tried_is_no_verdict():
    assert judge_host(CASES, [(case.number, CaseVerdict.NOT_TRIED) for case in CASES]) is HostVerdict.UNKNOWN


def test_odd_mailboxes_prove_nothing_where_any_mailbox_is_taken():
    rows = {case.number: CaseVerdict.REFUSED for case in CASES} | {201: CaseVerdict.ACCEPTED}
    assert judge_host(CASES, rows.items()) is HostVerdict.OPEN
    assert judge_host(CASES, (rows | {NOTICE.number: CaseVerdict.LOCAL}).items()) is HostVerdict.UNKNOWN
    assert (
        judge_host(CASES, (rows | {NOTICE.number: CaseVerdict.LOCAL, 401: CaseVerdict.ACCEPTED}).items())
        is HostVerdict.OPEN
    )


def test_exit_statuses_are_those_of_the_contract():
    assert [verdict.exit_status for verdict in HostVerdict] == [1, 0, 3]
