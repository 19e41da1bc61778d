"""Whatever a host does: a right verdict or none, and never a hang."""

import asyncio
import resource
import ssl
import time

import pytest
import trustme

from posthouse.tester import message
from posthouse.tester.case import CASES, Way
from posthouse.tester.collector import COLLECTOR_BANNER
from posthouse.tester.dialogue import Patience
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Reach, Report, Target
from posthouse.tester.verdict import CaseVerdict, HostVerdict
from rude_servers import Closed, Manners, serving

SMUGGLED = frozenset(case.number for case in CASES if case.way is Way.SMUGGLED)
PLAIN = frozenset({101, 102, 103, 201, 301, 401, 501, 601})
TESTER = message.Tester("tester.test", "postmaster@tester.test")


def run(behaviour, deadline: float = 20.0, address: str = "127.0.0.1", **more):
    """The report on a server that behaves so, and what the server saw."""

    async def go():
        async with serving(behaviour, address) as world:
            settings = ProberSettings(TESTER, deadline_seconds=deadline, **more)
            return await probe(Target(address, world.port, domain="here.test"), settings), world

    return asyncio.run(go())


def found(report: Report, verdict: CaseVerdict) -> set[int]:
    return {result.number for result in report.results if result.verdict is verdict}


# --- servers with manners


def test_closed_server_is_closed_and_every_case_was_said():
    report, world = run(Manners)
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert not found(report, CaseVerdict.UNKNOWN)
    assert found(report, CaseVerdict.NOT_TRIED) == {117, 808}
    assert not world.relayed


def test_server_that_accepts_everything_and_throws_it_away_is_reported_in_those_words():
    class AcceptsAll(Manners):
        def rcpt(self, path):
            return "250 2.1.5 ok"

    report, _ = run(AcceptsAll)
    assert report.verdict is HostVerdict.OPEN
    assert "accepted, delivery not observed" in report.words
    assert 101 in found(report, CaseVerdict.ACCEPTED)


def test_250_to_rcpt_and_a_refusal_at_data_is_no_relaying():
    class RefusesAtData(Manners):
        def rcpt(self, path):
            return "250 2.1.5 ok"

        def data(self):
            return "554 5.7.1 relaying denied"

    report, world = run(RefusesAtData)
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert not world.relayed


def test_250_to_rcpt_and_a_refusal_of_the_content_is_no_relaying():
    class RefusesContent(Manners):
        def rcpt(self, path):
            return "250 2.1.5 ok"

        def accept(self, content):
            return "550 5.7.1 relaying denied"

    report, _ = run(RefusesContent, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words


def test_server_that_keeps_the_transaction_of_a_refused_content_is_asked_every_case():
    class Keeps(Manners):
        """As Postfix does with smtpd_end_of_data_restrictions."""

        async def command(self, line):
            if line[:4].upper() == "MAIL" and self.forward_paths:
                return "503 5.5.1 nested MAIL command"
            return await super().command(line)

        def rcpt(self, path):
            return "250 2.1.5 ok"

        def accept(self, content):
            return "554 5.7.1 access denied"

    report, _ = run(Keeps)
    assert report.verdict is HostVerdict.CLOSED, report.words


def test_catch_all_of_the_hosts_own_domain_is_not_taken_for_a_relay():
    class CatchAll(Manners):
        def is_ours(self, path):
            return path.rstrip(">").lower().endswith("@here.test") or super().is_ours(path)

    report, _ = run(CatchAll)
    assert report.verdict is HostVerdict.UNKNOWN, report.words
    assert "a collector can tell" in report.words


# --- doors left open: exactly those cases are found

DOORS = {
    "null sender": ({102}, lambda s, path: s.reverse_path == "<>"),
    "sender's domain": ({103, 116}, lambda s, path: re_sender(s) and "AUTH=" not in s.reverse_path),
    "percent hack": ({201, 202, 203, 207, 208, 209}, lambda s, path: percent(path)),
    "bang path": ({301}, lambda s, path: path.startswith("<example.com!") and "@" not in path),
    "source route": ({210, 401}, lambda s, path: path.startswith("<@here.test:")),
    "quoted": ({501}, lambda s, path: path.startswith('<"') and path.endswith('">') and "@" in path),
    "trailing dot": ({510}, lambda s, path: path.endswith(".>")),
    "EHLO localhost": ({703}, lambda s, path: s.hello == "localhost" and is_plain(path)),
    "EHLO own name": ({701}, lambda s, path: s.hello == "mx.here.test" and is_plain(path)),
    "second recipient": ({806}, lambda s, path: bool(s.forward_paths) and is_plain(path)),
}


def re_sender(session):
    return session.reverse_path.lower().startswith("<postmaster@here.test>")


def percent(path):
    return path.startswith("<relay-test%") and "@" in path


def is_plain(path):
    return path == "<relay-test@example.com>"


@pytest.mark.parametrize("door", DOORS)
def test_one_open_door_is_found_and_no_other(door):
    cases, opens = DOORS[door]

    class OneDoor(Manners):
        def is_let_through(self, path):
            return opens(self, path)

    report, world = run(OneDoor)
    assert report.verdict is HostVerdict.OPEN, report.words
    assert found(report, CaseVerdict.ACCEPTED) == cases
    assert len(world.relayed) >= len(cases)
    assert report.remedy is not None


@pytest.mark.parametrize(
    "forward_path",
    [
        "<relay-test=example.com@here.test>",
        "<SRS0=AAAA=AA=example.com=relay-test@here.test>",
        "<relay-test+example.com@here.test>",
        "<IMCEASMTP-relay-test+40example+2Ecom@here.test>",
    ],
)
def test_mailbox_that_may_be_a_forwarder_of_anything_is_no_proof_that_it_is_not(forward_path):
    class Forwards(Manners):
        def is_let_through(self, path):
            return path == forward_path

    class TakesAny(Forwards):
        def is_ours(self, path):
            return path.lower().startswith("<no-such-user") or super().is_ours(path)

    report, _ = run(Forwards)
    assert report.verdict is HostVerdict.UNKNOWN
    assert "forward" in report.words
    report, _ = run(TakesAny)
    assert report.verdict is HostVerdict.CLOSED, report.words


def test_server_that_believes_proxy_headers_of_strangers_is_open():
    class BelievesProxy(Manners):
        client = ""

        async def greet(self):
            first = await asyncio.wait_for(self.reader.read(6), 2)
            if first == b"PROXY ":
                self.client = (await self.line()).split()[1]
            elif first == b"\r\n\r\n\0\r":
                await self.reader.readexactly(6 + 16)
                self.client = "127.0.0.1"
            else:
                raise Closed
            await super().greet()

        def is_let_through(self, path):
            return self.client == "127.0.0.1" and is_plain(path)

    report, _ = run(BelievesProxy, numbers=frozenset({811, 812}))
    assert found(report, CaseVerdict.ACCEPTED) == {811, 812}, report.words


def test_server_that_believes_xclient_of_strangers_is_open():
    class BelievesXclient(Manners):
        claimed = False

        async def other(self, line):
            self.claimed = line.upper().startswith("XCLIENT") and "ADDR=127.0.0.1" in line
            return "220 mx.here.test ESMTP" if self.claimed else "502 5.5.1 what?"

        def is_let_through(self, path):
            return self.claimed

    report, _ = run(BelievesXclient)
    assert found(report, CaseVerdict.ACCEPTED) == {810}


def test_server_that_ends_mail_at_a_bare_lf_is_caught_smuggling():
    class BareLf(Manners):
        """An edge that relays for nobody, but whose inner half trusts what comes behind a false end."""

        smuggled = False

        async def content(self):
            whole = b""
            while not whole.endswith((b"\r\n.\r\n", b"\n.\n", b"\n.\r\n")):
                whole += await self.reader.readexactly(1)
            self.smuggled = not whole.endswith(b"\r\n.\r\n")
            return whole

        def is_let_through(self, path):
            return self.smuggled and is_plain(path)

    report, world = run(BareLf)
    assert {901, 902} <= found(report, CaseVerdict.ACCEPTED)
    assert found(report, CaseVerdict.ACCEPTED) <= {901, 902, 903}
    assert world.relayed


def test_postmaster_of_a_server_that_sees_through_the_smuggling_gets_one_mail_of_it():
    mails: list[bytes] = []

    class OneMail(Manners):
        def accept(self, content):
            mails.append(content)
            return super().accept(content)

    report, world = run(OneMail, numbers=frozenset({101, *SMUGGLED}))
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert found(report, CaseVerdict.LOCAL) == SMUGGLED
    assert len(mails) == 1
    assert world.connections == 2


def test_postmaster_of_a_server_that_refuses_bare_lf_gets_one_mail_of_the_smuggling():
    mails: list[bytes] = []

    class NoBareLf(Manners):
        """As Postfix since 3.9 may: it reads on, and refuses the whole."""

        def accept(self, content):
            if b"\n" in content.replace(b"\r\n", b""):
                self.reverse_path, self.forward_paths = None, []
                return "550 5.5.2 bare <LF> received"
            mails.append(content)
            return super().accept(content)

    report, _ = run(NoBareLf, numbers=frozenset({101, *SMUGGLED}))
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert found(report, CaseVerdict.REFUSED) == {101, 901, 902, 903}
    assert found(report, CaseVerdict.LOCAL) == {904, 905, 906}
    assert len(mails) == 1


@pytest.mark.parametrize("number", sorted(SMUGGLED))
def test_next_server_that_takes_one_false_end_for_true_finds_that_case_behind_it(number):
    mails: list[bytes] = []

    class Front(Manners):
        def accept(self, content):
            mails.append(content)
            return super().accept(content)

    report, _ = run(Front, numbers=frozenset({101, *SMUGGLED}))
    ending = next(case.ending for case in CASES if case.number == number).encode()
    _, _, behind = mails[0].partition(ending)
    said = next(result.said for result in report.results if result.number == number)
    lines = behind.split(b"\r\n")
    assert [line.decode() for line in lines[:2]] == list(said)
    assert lines[2] == b"DATA"
    assert f"case {number}, ".encode() in behind.partition(b"Date: ")[0]


def test_server_that_takes_one_false_end_of_several_is_told_which():
    class CrOnly(Manners):
        """Takes CR . CR for the end, and behind it whatever comes."""

        smuggled = False

        async def content(self):
            whole = b""
            while not whole.endswith((b"\r\n.\r\n", b"\r.\r")):
                whole += await self.reader.readexactly(1)
            self.smuggled = not whole.endswith(b"\r\n.\r\n")
            return whole

        def is_let_through(self, path):
            return self.smuggled and is_plain(path)

    report, world = run(CrOnly)
    assert found(report, CaseVerdict.ACCEPTED) == {904}
    assert found(report, CaseVerdict.LOCAL) >= SMUGGLED - {904}
    assert world.relayed


def test_server_that_hangs_up_on_a_bare_lf_refuses_the_smuggling():
    class NoBareLf(Manners):
        """As sendmail 8.18 does."""

        def is_ours(self, path):
            return path.lower().startswith("<postmaster")

        async def content(self):
            whole = b""
            while not whole.endswith(b"\r\n.\r\n"):
                whole += await self.reader.readexactly(1)
                if whole.endswith(b"\n") and not whole.endswith(b"\r\n"):
                    self.writer.write(b"421 4.5.0 Bare linefeed (LF) not allowed\r\n")
                    raise Closed
            return whole

    report, _ = run(NoBareLf, numbers=frozenset({101, 901, 902, 903}))
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert found(report, CaseVerdict.REFUSED) == {101, 901, 902, 903}


def test_collector_that_is_tested_itself_gets_no_verdict():
    class Collector(Manners):
        async def greet(self):
            await self.say(f"220 collector.test {COLLECTOR_BANNER}")

        def is_let_through(self, path):
            return is_plain(path)

    report, world = run(Collector)
    assert report.verdict is HostVerdict.UNKNOWN
    assert "this is the collector of a relay test" in report.words
    assert not world.relayed


# --- servers without patience


def test_server_that_drops_after_three_errors_is_judged_on_every_case():
    class DropsAfterThree(Manners):
        async def before_error(self, reply):
            if self.errors > 3:
                raise Closed

    report, _ = run(DropsAfterThree)
    assert report.verdict is HostVerdict.CLOSED, report.words


def test_server_that_says_421_after_three_errors_is_judged_on_every_case():
    class SaysFarewell(Manners):
        async def say(self, reply):
            if reply[:1] == "5" and self.errors >= 3:
                self.writer.write(b"421 4.7.0 too many errors\r\n")
                raise Closed
            await super().say(reply)

    report, _ = run(SaysFarewell)
    assert report.verdict is HostVerdict.CLOSED, report.words


@pytest.mark.slow
def test_server_that_hangs_up_with_every_refusal_is_judged_on_every_case():
    class HangsUp(Manners):
        async def say(self, reply):
            await super().say(reply)
            if reply[:1] == "5":
                raise Closed

    report, _ = run(HangsUp, deadline=60)
    assert report.verdict is HostVerdict.CLOSED, report.words


def test_server_that_bears_two_connections_is_judged_on_every_case():
    class TwoAtOnce(Manners):
        async def greet(self):
            if self.world.at_once > 2:
                self.writer.write(b"421 4.7.0 too many connections\r\n")
                raise Closed
            await super().greet()

    report, _ = run(TwoAtOnce, deadline=60)
    assert report.verdict is HostVerdict.CLOSED, report.words


@pytest.mark.slow
def test_server_that_slows_down_after_errors_is_not_waited_for():
    """Postfix's manner: after so many errors each answer takes a second."""

    class SlowsDown(Manners):
        async def before_error(self, reply):
            if self.errors > 4:
                await asyncio.sleep(1.0)

    began = time.monotonic()
    report, _ = run(SlowsDown, deadline=60)
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert time.monotonic() - began < 30, "sessions were not ended in time"


@pytest.mark.slow
def test_tarpit_beyond_the_deadline_gets_no_verdict_in_time():
    class Tarpit(Manners):
        async def say(self, reply):
            await asyncio.sleep(3)
            await super().say(reply)

    began = time.monotonic()
    report, _ = run(Tarpit, deadline=2)
    assert report.verdict is HostVerdict.UNKNOWN
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_tarpit_within_the_deadline_is_borne():
    class Tarpit(Manners):
        async def say(self, reply):
            await asyncio.sleep(0.1)
            await super().say(reply)

    report, _ = run(Tarpit, deadline=60, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words


# --- servers that say: later


class Greylist(Manners):
    words = "451 4.7.1 greylisted, please try again in 1 seconds"

    def rcpt(self, path):
        slot = f"{self.reverse_path} {path} {self.hello}"
        now = time.monotonic()
        if now - self.world.seen.setdefault(slot, now) < 0.9:
            return self.words
        return super().rcpt(path)


@pytest.mark.slow
def test_greylist_in_front_of_a_closed_server_is_waited_out():
    report, _ = run(Greylist, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert all(result.attempts == 2 for result in report.results if result.number == 101)


@pytest.mark.slow
def test_greylist_in_front_of_an_open_relay_does_not_hide_it():
    class OpenGreylist(Greylist):
        def is_let_through(self, path):
            return True

    report, world = run(OpenGreylist, numbers=PLAIN)
    assert report.verdict is HostVerdict.OPEN, report.words
    assert world.relayed


@pytest.mark.slow
def test_postscreen_that_wants_to_see_a_client_twice_is_passed():
    class Postscreen(Manners):
        def rcpt(self, path):
            return super().rcpt(path) if self.number > 1 else "450 4.3.2 Service currently unavailable"

    report, _ = run(Postscreen, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words


@pytest.mark.slow
def test_greylist_that_never_ends_gets_no_verdict():
    class Forever(Manners):
        relay_denied = "451 4.7.1 greylisted, please try again in 300 seconds"

    report, _ = run(Forever, deadline=3, numbers=PLAIN)
    assert report.verdict is HostVerdict.UNKNOWN
    assert "later" in report.words


def test_postfix_454_relay_access_denied_is_a_refusal_and_not_a_greylist():
    class Deferring(Manners):
        relay_denied = "454 4.7.1 <x@example.com>: Relay access denied"

    report, _ = run(Deferring, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert report.seconds < 5


# --- servers that refuse the tester, not relaying


@pytest.mark.parametrize(
    "words",
    [
        "554 5.7.1 Service unavailable; client [127.0.0.1] blocked using zen.spamhaus.org",
        "550 5.7.1 Client host rejected: cannot find your reverse hostname",
        "550 5.7.1 <tester.test>: Helo command rejected: Host not found",
        "550 5.1.8 <relay-test@tester.test>: Sender address rejected: Domain not found",
        "550 5.1.2 <relay-test@example.com>: Recipient address rejected: Domain not found",
    ],
)
def test_refusal_of_the_tester_is_no_proof_that_others_are_refused(words):
    class Refuses(Manners):
        relay_denied = words

    report, _ = run(Refuses, numbers=frozenset({101, 102, 201}))
    assert report.verdict is HostVerdict.UNKNOWN, report.words


def test_server_that_greets_with_554_gets_no_verdict():
    class NoService(Manners):
        greeting = "554 5.3.2 no SMTP service here"

    report, _ = run(NoService)
    assert report.verdict is HostVerdict.UNKNOWN
    assert "turned the tester away" in report.words


def test_redirection_by_421_is_not_followed():
    class Redirects(Manners):
        async def greet(self):
            self.writer.write(b"421 mx2.here.test takes mail now\r\n")
            raise Closed

    report, world = run(Redirects, deadline=4)
    assert report.verdict is HostVerdict.UNKNOWN
    assert "421 mx2.here.test" in report.words
    assert world.connections < 10


# --- servers that speak something else


def speaking(*pieces: bytes, pause: float = 0.0):
    async def speak(reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        await reader.read()

    return speak


BROKEN = {
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n",),
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n",),
    "two greetings": (b"220 one\r\n220 two\r\n250 three\r\n",),
    "a lie in a multi-line reply": (b"220 here\r\n250-mx.here.test\r\n550 no\r\n",),
    "a code that fits nothing": (b"354 go on\r\n",),
    "octets of all kinds": (bytes(range(256)) * 4 + b"\r\n",),
    "half a line": (b"220 mx.here",),
    "nothing": (),
    "TLS in the clear": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_smtp_gets_no_verdict_in_time(kind):
    began = time.monotonic()
    report, _ = run(speaking(*BROKEN[kind]), deadline=4, patience=Patience(answer=0.5))
    assert report.verdict is HostVerdict.UNKNOWN, report.words
    assert time.monotonic() - began < 15
    assert report.words.startswith("no verdict")


def test_two_replies_to_each_command_never_make_an_acceptance_out_of_a_refusal():
    class Stutters(Manners):
        async def say(self, reply):
            await super().say(reply)
            if reply[:1] == "5":
                await super().say("250 2.1.5 ok")

    report, _ = run(Stutters, deadline=10, numbers=PLAIN)
    assert report.verdict is not HostVerdict.OPEN, report.words


@pytest.mark.slow
def test_server_that_welcomes_content_and_never_answers_gets_no_verdict():
    class Silent(Manners):
        def rcpt(self, path):
            return "250 2.1.5 ok"

        async def content(self):
            await super().content()
            await self.reader.read()
            raise Closed

    report, _ = run(Silent, deadline=6, numbers=frozenset({101}), patience=Patience(answer=0.5, content_end=0.5))
    assert report.verdict is HostVerdict.UNKNOWN, report.words


def test_server_that_sends_octet_by_octet_is_understood():
    class Dribbles(Manners):
        async def say(self, reply):
            for octet in reply.encode() + b"\r\n":
                self.writer.write(bytes((octet,)))
                await self.writer.drain()

    report, _ = run(Dribbles, numbers=PLAIN)
    assert report.verdict is HostVerdict.CLOSED, report.words


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b"220-endless\r\n", b"x" * 65536], ids=["lines", "one line"])
def test_gigabytes_are_not_read(piece):
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        while sent < 1 << 30:
            writer.write(piece * 16)
            await writer.drain()
            sent += len(piece) * 16

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report, _ = run(flood, deadline=5)
    assert report.verdict is HostVerdict.UNKNOWN
    assert sent < 200 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_long_replies_to_each_command_are_cut_off():
    class Talks(Manners):
        async def say(self, reply):
            if reply[:1] == "5":
                self.writer.write(b"".join(b"%s-%s\r\n" % (reply[:3].encode(), b"x" * 3000) for _ in range(200)))
            await super().say(reply)

    report_octets = ProberSettings(TESTER).dialogue_octets
    report, _ = run(Talks, deadline=20, numbers=PLAIN)
    kept = sum(len(line) for one in report.transcripts for line in one.lines)
    assert kept < 2 * report_octets
    assert report.verdict is not HostVerdict.OPEN


# --- TLS


def with_tls(context: ssl.SSLContext | None):
    class Starttls(Manners):
        offers = ("STARTTLS",)

        async def other(self, line):
            if line.upper() != "STARTTLS" or context is None:
                return "454 4.7.0 TLS is not available"
            await self.say("220 go on")
            await self.writer.start_tls(context)
            self.tls = True
            self.reader = self.writer._protocol._stream_reader  # type: ignore[attr-defined]
            return ""

        def is_let_through(self, path):
            return self.tls

    return Starttls


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_server_that_relays_for_all_tls_clients_is_open_whatever_its_certificate():
    certificate = trustme.CA().issue_cert("elsewhere.test")
    report, world = run(with_tls(context_of(certificate)))
    assert found(report, CaseVerdict.ACCEPTED) == {808}, report.words
    assert report.tls.version.startswith("TLS")
    assert report.tls.names == ("elsewhere.test",)
    assert world.relayed


def test_starttls_that_fails_is_told_and_the_rest_is_judged():
    report, _ = run(with_tls(None))
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert 808 in found(report, CaseVerdict.NOT_TRIED)


# --- hosts that are not there


def test_port_on_which_nobody_listens():
    async def go():
        async with serving(Manners) as world:
            pass
        return await probe(Target("127.0.0.1", world.port), ProberSettings(TESTER, deadline_seconds=5))

    report = asyncio.run(go())
    assert report.verdict is HostVerdict.UNKNOWN
    assert report.reach is Reach.NOBODY_LISTENS
    assert "connection refused" in report.words


def test_server_that_hangs_up_at_once():
    async def hang_up(reader, writer):
        writer.close()

    report, world = run(hang_up, deadline=10)
    assert report.verdict is HostVerdict.UNKNOWN
    assert world.connections < 10


def test_ipv6_host():
    report, _ = run(Manners, address="::1")
    assert report.verdict is HostVerdict.CLOSED, report.words
