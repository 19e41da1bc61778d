"""The probe: a short mail that says in clear words who tests, why, and where to complain."""

import email.utils

import msgspec

from posthouse.tester.case import Case, Names


class Tester(msgspec.Struct, frozen=True):
    """Who tests. `contact` is where to complain: a mail address or a URL; `on_behalf` completes "asked for by ..."."""

    name: str
    contact: str
    on_behalf: str = "whoever runs the host"


_TEXT = """\
This is a test, not an advertisement, and needs no answer.

The host {host} was asked whether it relays mail for strangers.
This is case {number}: {name}.

Who tests:          {tester}, by the relay test of Posthouse
Asked for by:       {on_behalf}
Where to complain:  {contact}
Token:              {token}

If you can read this in a mailbox that has nothing to do with that host, then
it has relayed this mail, and will relay any spammer's: it is an open relay.
Its postmaster should be told. If you are its postmaster and found this among
your own mail, nothing is wrong.
"""


def probe_message(case: Case, names: Names, tester: Tester, host: str, test_id: int, now: float) -> bytes:
    """The whole message in plain form, ASCII, CRLF. `now` in seconds since 1970."""
    header = (
        ("From", f"Relay test <{names.tester}>"),
        ("To", f"<{names.third_party}>"),
        ("Subject", f"Relay test of {host}: case {case.number}, {case.name}"),
        ("Date", email.utils.formatdate(now)),
        ("Message-ID", f"<{names.third_local}.{case.number}@{names.tester_name}>"),
        ("Auto-Submitted", "auto-generated"),
        ("X-Posthouse-Relay-Test", f"{test_id} {case.number}"),
    )
    text = _TEXT.format(
        host=host,
        number=case.number,
        name=case.name,
        tester=tester.name,
        on_behalf=tester.on_behalf,
        contact=tester.contact,
        token=names.third_local,
    )
    lines = [f"{name}: {value}" for name, value in header] + ["", *text.splitlines(), ""]
    return "\r\n".join(lines).encode("ascii", "replace")
