"""What the audit says of a configuration is what the real server does: a counterexample, said to it by a stranger, arrives."""

import contextlib
import os
import smtplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from peer_exim import EXIM_FORMS, EXIM_FORMS_OF_CHECK, exim_relay
from peer_opensmtpd import OPENSMTPD_FORMS, opensmtpd_relay
from peer_programs import environment, program, require_peer, run_client, wait_until
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_sendmail import SENDMAIL_FORMS, sendmail_relay
from peer_servers import NextHop, postfix_next_hop
from posthouse.audit import Closed, Counterexample, Finding, Kind, Open, audit

pytestmark = [pytest.mark.peer, pytest.mark.slow]

Start = Callable[[Form, NextHop], AbstractContextManager[RelayPeer]]
THIRD_PARTIES = ["third-party.example", "third-party.test"]
SERVERS: dict[Kind, tuple[tuple[Form, ...], Start, str]] = {
    Kind.EXIM: ((*EXIM_FORMS, *EXIM_FORMS_OF_CHECK), exim_relay, "exim.test"),
    Kind.OPENSMTPD: (OPENSMTPD_FORMS, opensmtpd_relay, "opensmtpd.test"),
    Kind.SENDMAIL: (SENDMAIL_FORMS, sendmail_relay, "sendmail.test"),
}
CELLS = [
    pytest.param(kind, form, id=f"{kind}-{form.name}") for kind, (forms, _, _) in SERVERS.items() for form in forms
]


@pytest.fixture(scope="module")
def third_party() -> Iterator[NextHop]:
    require_peer("postfix")
    with postfix_next_hop(THIRD_PARTIES) as server:
        yield server


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Kind], None]:
    """As if the peer's programs were this machine's own."""

    def put_in_place(kind: Kind) -> None:
        (tmp_path / "sendmail").symlink_to(program("sendmail", "usr/libexec/sendmail/sendmail"))
        variables = environment(kind.value)
        monkeypatch.setenv(
            "PATH", f"{tmp_path}{os.pathsep}{variables['PATH']}" if kind is Kind.SENDMAIL else variables["PATH"]
        )
        monkeypatch.setenv("LD_LIBRARY_PATH", variables["LD_LIBRARY_PATH"])

    return put_in_place


def says(server: RelayPeer, example: Counterexample) -> bool:
    """A stranger from 127.0.0.2 says the counterexample; whether the server takes it."""
    with contextlib.suppress(smtplib.SMTPException):
        with smtplib.SMTP(
            server.address, server.port, local_hostname=example.hello, timeout=30, source_address=("127.0.0.2", 0)
        ) as client:
            if example.over_tls:
                client.starttls(context=ssl._create_unverified_context())
            client.ehlo(example.hello)
            client.sendmail(example.reverse_path, [example.forward_path], b"Subject: probe\r\n\r\nhello\r\n")
        return True
    return False


def attempts(own_name: str) -> Iterator[Counterexample]:
    """What a stranger tries at a server that is said to be closed."""
    third = THIRD_PARTIES[0]
    paths = (
        f"someone@{third}",
        f"someone%{third}@{LOCAL_DOMAIN}",
        f"{third}!someone@{LOCAL_DOMAIN}",
        f'"someone@{third}"@{LOCAL_DOMAIN}',
    )
    for forward_path in paths:
        for hello, reverse_path in (
            ("stranger.example", "someone@stranger.example"),
            (own_name, f"root@{LOCAL_DOMAIN}"),
        ):
            yield Counterexample(
                client="127.0.0.2",
                reverse_path=reverse_path,
                forward_path=forward_path,
                hello=hello,
                file="",
                line=0,
                words="",
            )


def exim_queue_length(server: RelayPeer) -> int:
    done = run_client("exim", "usr/sbin/exim4", "-C", str(server.configuration), "-bpc")
    return int(done.stdout)


@pytest.mark.parametrize(("kind", "form"), CELLS)
def test_audit_and_server_agree(
    kind: Kind, form: Form, third_party: NextHop, installed: Callable[[Kind], None]
) -> None:
    start, own_name = SERVERS[kind][1:]
    with start(form, third_party) as server:
        installed(kind)
        finding: Finding = audit(kind, server.configuration)
        arrived = len(third_party.arrived())
        if form.is_open:
            assert isinstance(finding, Open), finding
            assert finding.counterexample.line > 0, finding
            assert says(server, finding.counterexample), finding
            third_party.wait_for(arrived + 1)
        else:
            assert isinstance(finding, Closed), finding
            taken = [attempt for attempt in attempts(own_name) if says(server, attempt)]
            if kind is Kind.EXIM and taken:  # it is thrown away or kept; nothing may be under way
                wait_until(lambda: exim_queue_length(server) == 0, "the end of all deliveries")
            assert len(third_party.arrived()) == arrived
