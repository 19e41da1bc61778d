"""The verdict on a configuration, the verdict from outside, and what truly arrived agree for every server in every form."""

import contextlib
import json
import os
import smtplib
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from collecting import DOMAIN, Collecting, collecting
from peer_postfix import CATCH_ALL, postfix_relay
from peer_programs import environment, program, require_peer, wait_until
from peer_relay_forms import LOCAL_DOMAIN, Form, RelayPeer
from peer_servers import NextHop, postfix_next_hop
from relay_forms import ATTEMPTS, SERVERS, THIRD_PARTY, TO_AN_ALIAS, Attempt, Server, way_in

pytestmark = [pytest.mark.peer, pytest.mark.slow]
AT_ONCE = 6
"""Forms of one server that are tried side by side: nearly all of the time is waiting."""
STRANGER = "127.0.0.2"
POSTFIX = {name: environment("postfix")[name] for name in ("PATH", "LD_LIBRARY_PATH")}
RATES = "per_client = 100000\nin_all = 1000000\n"
SETTINGS = "[tester]\ntests_per_target = 1000\ntests_per_day = 10000\n"


class World(NamedTuple):
    """The third party, and the collector that stands behind it for the probes of `test`."""

    third_party: NextHop
    collector: Collecting


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require_peer("postfix", "exim", "opensmtpd", "sendmail")
    with collecting(settings=SETTINGS, rates=RATES) as collector:
        passed_on = {
            "myhostname": "sink.test",
            "relay_domains": DOMAIN,
            "transport_maps": f"inline:{{ {DOMAIN}=smtp:[127.0.0.1]:{collector.port} }}",
            "header_checks": "regexp:{{/^Received:.*by sink[.]test/ IGNORE}}",  # it is the third party's, no hop of the relay's
        }
        with postfix_next_hop([THIRD_PARTY], settings=passed_on) as third_party:
            yield World(third_party, collector)


class Cell(NamedTuple):
    """What was found of one form; the numbers are cases: arrived by hand, and relayed by `test`."""

    check: str
    test: str
    by_hand: frozenset[int]
    relayed: frozenset[int]
    is_multi_hop: bool
    words: str


def hand_in(peer: RelayPeer, name: str, attempt: Attempt, local: str, source: str = STRANGER) -> None:
    """Says the attempt; a refusal is an answer."""
    hello = attempt.hello.format(name=name)
    with (
        contextlib.suppress(smtplib.SMTPException, ssl.SSLError),
        smtplib.SMTP(peer.address, peer.port, local_hostname=hello, timeout=60, source_address=(source, 0)) as client,
    ):
        if attempt.over_tls:
            client.starttls(context=ssl._create_unverified_context())
        client.ehlo()
        if attempt.first and client.docmd(attempt.first)[0] != 220:
            return
        forward_path = attempt.forward_path.format(local=local)
        client.sendmail(attempt.reverse_path, [forward_path], f"Subject: {local}\r\n\r\nhello\r\n".encode())


def arrived(third_party: NextHop) -> set[str]:
    return {str(one.message["Subject"]) for one in third_party.arrived()}


def posthouse(collector: Collecting, *arguments: str, variables: Mapping[str, str]) -> Any:
    """What a command prints by --json."""
    command = [sys.executable, "-m", "posthouse", "--config", str(collector.server.configuration), *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **variables}
    )
    assert done.returncode in (0, 1, 3), f"{arguments}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return json.loads(done.stdout)


def installed(mta: str, directory: Path) -> dict[str, str]:
    """Environment variables as if the peer's programs were this machine's own."""
    variables = dict(environment(mta))
    if mta == "sendmail":
        (directory / "bin").mkdir()
        (directory / "bin" / "sendmail").symlink_to(program("sendmail", "usr/libexec/sendmail/sendmail"))
        variables["PATH"] = f"{directory / 'bin'}{os.pathsep}{variables['PATH']}"
    return {name: variables[name] for name in ("PATH", "LD_LIBRARY_PATH")}


def find(server: Server, form: Form, world: World) -> Cell:
    """Everything that is asked of one form."""
    third_party = world.third_party
    locals_ = {attempt.case: f"a{attempt.case}-{uuid.uuid4().hex[:12]}" for attempt in ATTEMPTS}
    with server.start(form, third_party) as peer:
        for attempt in ATTEMPTS:
            hand_in(peer, server.name, attempt, locals_[attempt.case])
        if not form.is_open and form.name != "closed-reject-first":
            control = f"control-{uuid.uuid4().hex}"
            hand_in(peer, server.name, ATTEMPTS[0], control, source="127.0.0.1")
            wait_until(lambda: control in arrived(third_party), "mail of a trusted client")
        if form.name == "closed-forwarding":
            hand_in(peer, server.name, TO_AN_ALIAS, fixed := f"fixed-{uuid.uuid4().hex}")
            wait_until(lambda: fixed in arrived(third_party), "mail to an alias")
        check = posthouse(
            world.collector,
            *("check", "--mta", server.mta, str(peer.configuration)),
            variables=installed(server.mta, peer.directory),
        )
        report = posthouse(
            world.collector,
            *("test", f"{peer.address}:{peer.port}", "--source", STRANGER, "--domain", LOCAL_DOMAIN),
            variables={},
        )["reports"][0]
        subjects = arrived(third_party)
    relayed = {result["number"] for result in report["results"] if result["verdict"] == "relayed"}
    return Cell(
        check["verdict"],
        report["verdict"],
        frozenset(case for case, local in locals_.items() if local in subjects),
        frozenset(relayed),
        any(path["is_multi_hop"] for path in report["paths"]),
        f"{report['words']}; {json.dumps(check)[:1500]}",
    )


def disagreement(form: Form, cell: Cell, *, is_multi_hop: bool) -> str:
    """What does not agree with the truth; "" when all does."""
    truth = "open" if form.is_open else "closed"
    seen = "open" if cell.by_hand else "closed"
    by_hand_and_tested = {attempt.case for attempt in ATTEMPTS} & cell.relayed
    agrees = (
        cell.check == cell.test == seen == truth
        and (way_in(form) in cell.by_hand or not form.is_open)
        and by_hand_and_tested == cell.by_hand
        and cell.is_multi_hop == (is_multi_hop and form.is_open)
    )
    return "" if agrees else f"{form.name} is {truth}: {cell}"


@pytest.mark.parametrize("key", SERVERS)
def test_configuration_outside_view_and_truth_agree_in_every_form(key: str, world: World) -> None:
    server = SERVERS[key]
    assert sum(form.is_open for form in server.forms) >= 6
    with ThreadPoolExecutor(AT_ONCE) as pool:
        cells = list(pool.map(lambda form: find(server, form, world), server.forms))
    found = [
        disagreement(form, cell, is_multi_hop=key == "multi-hop" and form.name != "open-smart-host")
        for form, cell in zip(server.forms, cells, strict=True)
    ]
    assert [one for one in found if one] == []


def test_domain_that_is_forwarded_as_a_whole_is_not_called_open(world: World) -> None:
    """Whatever its local part, mail goes to one address outside; from outside that can't be told from a relay that is slow."""
    with postfix_relay(CATCH_ALL, world.third_party) as peer:
        check = posthouse(world.collector, "check", "--mta", "postfix", str(peer.configuration), variables=POSTFIX)
        place = f"{peer.address}:{peer.port}"
        arguments = ("test", place, "--source", STRANGER, "--domain", LOCAL_DOMAIN, "--delivery", "10")
        test = posthouse(world.collector, *arguments, variables={})
        hand_in(peer, "postfix.test", TO_AN_ALIAS, local := f"fixed-{uuid.uuid4().hex}")
        wait_until(lambda: local in arrived(world.third_party), "mail to the address behind the domain")
    assert (check["verdict"], test["verdict"]) in {("closed", "closed"), ("closed", "unknown")}, test["words"]
