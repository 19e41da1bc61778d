"""ACLs made up at random, and what a real Exim makes of them: the reading must come to the same answer."""

import random
from ipaddress import ip_address
from pathlib import Path

import pytest

from peer_programs import environment, require_peer
from posthouse.audit.exim import _Audit
from posthouse.audit.exim.play import find_exim
from posthouse.audit.exim.reading import read
from posthouse.audit.exim.session import Session

pytestmark = [pytest.mark.peer, pytest.mark.slow]

CONDITIONS = [
    r"hosts = *",
    r"hosts = :",
    r"hosts = 192.0.2.0/24 : 203.0.113.9",
    r"hosts = !192.0.2.0/24",
    r"hosts = 203.0.113.0/24 : !10.0.0.0/8",
    r"hosts = <; 203.0.113.9 ; 2001:db8::/32",
    r"!hosts = +nets",
    r"domains = +ours",
    r"domains = ! third.example : *",
    r"domains = third.example : !ours.test",
    r"domains = ${if eq{$sender_address}{}{*}{ours.test}}",
    r"senders = :",
    r"!senders = :",
    r"senders = *@ours.test",
    r"senders = +friends",
    r"senders = ! a@*",
    r"sender_domains = ! +ours",
    r"local_parts = ^.*[@%!]",
    r"local_parts = u : v*",
    r"local_parts = ! u",
    r"recipients = *@third.example",
    r"recipients = !u@third.example : *@+ours",
    r"authenticated = *",
    r"!authenticated = *",
    r"!encrypted = *",
    r"acl = sub",
    r"!acl = sub",
    r"endpass",
    r"set acl_m_x = ${if eq{$domain}{ours.test}{1}{0}}",
    r"condition = $acl_m_x",
    r"condition = ${if eq{$sender_helo_name}{own.test}}",
    r"condition = ${if match{$local_part}{\N^u%\N}{yes}{no}}",
    r"condition = ${if and{{def:sender_address}{!eq{$domain}{ours.test}}}}",
    r"condition = ${if or{{eqi{$domain}{THIRD.example}}{>{$rcpt_count}{5}}}}",
    r"condition = ${if match_domain{$domain}{+ours}}",
    r"condition = ${if match_ip{$sender_host_address}{<; 192.0.2.0/24; 10.0.0.0/8}}",
    r"condition = ${sg{$local_part}{^u.*\$}{yes}}",
    r"condition = ${local_part:$sender_address}",
]
VERBS = ("accept", "accept", "discard", "deny", "deny", "require", "warn", "drop", "defer")
TEXT = """\
primary_hostname = own.test
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
domainlist ours = ours.test : *.ours.test
hostlist nets = 192.0.2.0/24 : 10.0.0.1
addresslist friends = a@b.test : *@ours.test
acl_smtp_rcpt = top
begin acl
top:
{top}
sub:
{sub}
begin routers
all:
  driver = accept
  transport = away
begin transports
away:
  driver = appendfile
  file = /dev/null
"""


def statement(dice: random.Random, conditions: list[str]) -> str:
    verb = dice.choice(VERBS)
    chosen = [one for one in dice.sample(conditions, dice.randint(0, 3)) if verb == "accept" or one != "endpass"]
    return "\n".join([f"  {verb}", *(f"    {one}" for one in chosen)])


def session(dice: random.Random) -> Session:
    return Session(
        ip_address(dice.choice(["203.0.113.9", "192.0.2.7", "10.0.0.1", "2001:db8::1"])),
        dice.choice(["stranger.example", "own.test"]),
        False,
        dice.choice(["a@b.test", "", "x@ours.test", "a@sub.ours.test"]),
        dice.choice(["u", "vw", "u%third.example", "xv"]),
        dice.choice(["third.example", "ours.test", "sub.ours.test"]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_reading_and_exim_come_to_the_same_answer(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_peer("exim")
    variables = environment("exim")
    monkeypatch.setenv("PATH", variables["PATH"])
    monkeypatch.setenv("LD_LIBRARY_PATH", variables["LD_LIBRARY_PATH"])
    dice = random.Random(seed)
    simple = [one for one in CONDITIONS if "acl = sub" not in one]
    for _ in range(10):
        top = "\n".join(statement(dice, CONDITIONS) for _ in range(dice.randint(1, 6)))
        sub = "\n".join(statement(dice, simple) for _ in range(dice.randint(1, 2)))
        configuration = tmp_path / "exim.conf"
        configuration.write_text(TEXT.format(top=top, sub=sub))
        exim = find_exim(configuration)
        assert exim is not None
        for _ in range(2):
            who = session(dice)
            (answer,) = {one.is_accepted for one in _Audit(read(configuration))._stage("acl_smtp_rcpt", who)}
            assert answer is exim.say(who).is_taken, (who, top, sub)
