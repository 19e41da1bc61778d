"""Replies to enhanced status codes (RFC 3463, RFC 2034)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.status import Stage, asks_for_fewer_recipients, is_enhanced, status_of
from posthouse.smtp.reply import reply


@pytest.mark.parametrize(
    ("code", "enhanced", "stage", "status"),
    [
        (550, "5.7.1", Stage.RCPT, "5.7.1"),
        (550, "5.1.1", Stage.RCPT, "5.1.1"),
        (550, "4.1.1", Stage.RCPT, "5.1.0"),  # another class than the code's
        (550, "5.1", Stage.RCPT, "5.1.0"),
        (550, "5.1.1\r\nX: y", Stage.RCPT, "5.1.0"),
        (550, "", Stage.CONTENT, "5.0.0"),
        (450, "", Stage.RCPT, "4.2.0"),
        (451, "", Stage.CONTENT, "4.3.0"),
        (452, "", Stage.RCPT, "4.5.3"),
        (452, "", Stage.MAIL, "4.3.1"),
        (421, "", Stage.GREETING, "4.3.2"),
        (554, "", Stage.GREETING, "5.3.2"),
        (554, "", Stage.CONTENT, "5.0.0"),
        (552, "", Stage.MAIL, "5.3.4"),
        (552, "", Stage.RCPT, "5.2.2"),
        (535, "", Stage.AUTH, "5.7.8"),
        (454, "", Stage.TLS, "4.7.0"),
        (521, "", Stage.GREETING, "5.3.2"),
        (556, "", Stage.RCPT, "5.1.10"),
        (250, "", Stage.CONTENT, "2.0.0"),
        (250, "2.6.0", Stage.CONTENT, "2.6.0"),
        (354, "", Stage.CONTENT, "4.5.0"),
        (599, "", Stage.CONTENT, "5.0.0"),
        (499, "", Stage.CONTENT, "4.0.0"),
    ],
)
def test_a_reply_gets_the_status_that_says_no_more_than_it_knows(
    code: int, enhanced: str, stage: Stage, status: str
) -> None:
    assert status_of(reply(code, enhanced, "words"), stage) == status


@given(st.integers(0, 999), st.text(max_size=12), st.sampled_from(Stage))
def test_any_reply_gets_a_well_formed_status_of_its_class(code: int, enhanced: str, stage: Stage) -> None:
    status = status_of(reply(code, enhanced, "words"), stage)
    assert is_enhanced(status)
    if code // 100 in (2, 4, 5):
        assert status[0] == str(code // 100)


def test_too_many_recipients_is_told_from_a_full_mailbox() -> None:
    assert asks_for_fewer_recipients(reply(452, "4.5.3", "enough"))
    assert asks_for_fewer_recipients(reply(452, "", "enough"))
    assert asks_for_fewer_recipients(reply(552, "", "enough"))
    assert not asks_for_fewer_recipients(reply(552, "5.2.2", "mailbox full"))
    assert not asks_for_fewer_recipients(reply(452, "4.3.1", "disk full"))
    assert not asks_for_fewer_recipients(reply(550, "5.1.1", "unknown"))
