"""The table of truth: real servers in closed and in open forms, and what must be found of each.

A form is a server's configuration. Whether it is open was decided by who wrote it, and is seen by a third party: a stranger's
mail arrives there, or does not. `posthouse check --mta` and `posthouse test` must say the same. `python tests/relay_forms.py`
prints docs/table-of-truth.md.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from peer_exim import EXIM_FORMS, exim_relay
from peer_opensmtpd import OPENSMTPD_FORMS, opensmtpd_relay
from peer_postfix import MULTI_HOP_FORMS, POSTFIX_FORMS, multi_hop_relay, postfix_relay
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_sendmail import SENDMAIL_FORMS, sendmail_relay
from peer_servers import NextHop

THIRD_PARTY = "third-party.test"


class Attempt(NamedTuple):
    """What a stranger says to have mail carried to {local} at the third party, and the case of `posthouse test` that says the same."""

    name: str
    case: int
    forward_path: str = f"{{local}}@{THIRD_PARTY}"
    reverse_path: str = "someone@stranger.test"
    hello: str = "stranger.test"
    over_tls: bool = False
    first: str = ""


ATTEMPTS = (
    Attempt("plainly", 101),
    Attempt("with a null reverse-path", 102, reverse_path=""),
    Attempt("with a sender of the host's domain", 103, reverse_path=f"postmaster@{LOCAL_DOMAIN}"),
    Attempt("by percent hack", 201, forward_path=f"{{local}}%{THIRD_PARTY}@{LOCAL_DOMAIN}"),
    Attempt("by an alias that forwards anything", 211, forward_path=f"{{local}}={THIRD_PARTY}@{LOCAL_DOMAIN}"),
    Attempt("by one that takes a plus for it", 213, forward_path=f"{{local}}+{THIRD_PARTY}@{LOCAL_DOMAIN}"),
    Attempt("under the host's own name", 701, hello="{name}"),
    Attempt("as localhost", 703, hello="localhost"),
    Attempt("over TLS", 808, over_tls=True),
    Attempt("behind XCLIENT", 810, first="XCLIENT NAME=localhost ADDR=127.0.0.1"),
)
TO_AN_ALIAS = Attempt("to an alias with a fixed address outside", 0, forward_path=f"list@{LOCAL_DOMAIN}")
"""No relaying: what arrives was sent there by who owns the alias."""
_WAYS_IN = {
    "open-null-sender": 102,
    "open-reverse-path": 103,
    "open-local-from": 103,
    "open-percent-hack": 201,
    "open-routes-to-inside": 201,
    "open-forwarder": 211,
    "open-plus-forwarder": 213,
    "open-hello": 701,
    "open-hello-localhost": 703,
    "open-tls": 808,
    "open-xclient": 810,
}
"""The case that gets through where plain mail to a third party does not."""


class Server(NamedTuple):
    """A server, its forms, and how one of them is started. `mta` is what `check --mta` calls it."""

    title: str
    mta: str
    forms: tuple[Form, ...]
    start: Callable[[Form, NextHop], AbstractContextManager[RelayPeer]]
    name: str


NOT_SEEN_FROM_OUTSIDE = frozenset({"closed-reject", "open-secret-forwarder", "open-local-part"})
"""Forms that `test` can't judge: one refuses the tester himself, the others are open for local parts that only their text tells."""


def _seen(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    return tuple(form for form in forms if form.name not in NOT_SEEN_FROM_OUTSIDE)


SERVERS = {
    "postfix": Server("Postfix", "postfix", POSTFIX_FORMS, postfix_relay, "postfix.test"),
    "exim": Server("Exim", "exim", _seen(EXIM_FORMS), exim_relay, "exim.test"),
    "opensmtpd": Server("OpenSMTPD", "opensmtpd", _seen(OPENSMTPD_FORMS), opensmtpd_relay, "opensmtpd.test"),
    "sendmail": Server("sendmail", "sendmail", _seen(SENDMAIL_FORMS), sendmail_relay, "sendmail.test"),
    "multi-hop": Server("Postfix and a smart host", "postfix", MULTI_HOP_FORMS, multi_hop_relay, "postfix.test"),
}


def way_in(form: Form) -> int | None:
    """The case that must be relayed; None for a closed form."""
    return _WAYS_IN.get(form.name, 101) if form.is_open else None


_HEAD = """\
# The table of truth

Real servers, each in closed and in open forms: what `posthouse check --mta` says of the configuration, what `posthouse test`
says from outside, and whether mail of a stranger did arrive at a third party. They agree in every cell, or a test fails:

    ./run-tests tests/peers/test_table_of_truth.py

starts every one of these servers on this machine (Debian's packages, unpacked beside the system), has a stranger at another
address try ten ways in by hand, and looks into the mailboxes of a real Postfix that stands for the third party. A closed
server has to carry the mail of a client that it trusts, so that none is closed by being broken. *Way in* is the
[case](cases.md) that got through; cases that arrived by hand and cases that `test` calls relayed are the same.

| server | form | `check --mta` | `test` | truth | way in |
|---|---|---|---|---|---|
"""
_TAIL = """
A server that takes mail for any mailbox of its domain, and also those with `%` in them, gets *no verdict* from outside when
nothing has arrived: what it keeps and what it sends on late look the same. One that refuses the tester's address gets none
either. Its configuration can tell. And what is open for some local parts only, an alias that its owner alone knows
(`to+user=domain@`) or anybody's `postmaster`, is found by `check --mta` alone.
"""


def table() -> str:
    """docs/table-of-truth.md."""
    rows = []
    for server in SERVERS.values():
        for form in server.forms:
            verdict = "**open**" if form.is_open else "closed"
            truth = "arrived" if form.is_open else "nothing arrived"
            case = way_in(form)
            rows.append(f"| {server.title} | {form.says} | {verdict} | {verdict} | {truth} | {case or ''} |\n")
    return _HEAD + "".join(rows) + _TAIL


if __name__ == "__main__":
    sys.stdout.write(table())
