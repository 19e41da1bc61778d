"""The SMTP transport under TLS and with a login: aiosmtpd as a stranger, and servers whose TLS is broken on purpose."""

import asyncio
import contextlib
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult

from posthouse.mail.message import ContentFile
from posthouse.mail.outcome import Relayed
from posthouse.net.client import ClientTimeouts, Endpoint
from posthouse.transports.api import Attempt, Closed, Login, TlsMode, Unavailable
from posthouse.transports.opening import _Opening
from posthouse.transports.smtp import SmtpSettings, SmtpTransport
from transport_cases import TRACE, Heard, ListFeed, ScriptedServer, attempt

QUICK = ClientTimeouts(connect=3, tls=3, greeting=3, command=3, mail=3, rcpt=3, data=3, content_end=3, quit=0.3)
TLS_OFFERED = ("PIPELINING", "8BITMIME", "STARTTLS")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mx.example.net").configure_cert(context)
    return context


class Collector:
    """A handler for aiosmtpd that keeps what it gets."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.tls: list[bool] = []
        self.logins: list[object] = []

    async def handle_DATA(self, _server: object, session: object, envelope: object) -> str:  # noqa: N802
        self.contents.append(envelope.original_content)  # type: ignore[attr-defined]
        self.tls.append(session.ssl is not None)  # type: ignore[attr-defined]
        self.logins.append(session.auth_data)  # type: ignore[attr-defined]
        return "250 2.0.0 Kept"


@contextlib.asynccontextmanager
async def stranger(collector: Collector, **options: object) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = await loop.create_server(lambda: SMTP(collector, loop=loop, **options), "127.0.0.1", 0)  # type: ignore[arg-type]
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()


def settings(port: int, name: str = "mx.example.net", **changes: object) -> SmtpSettings:
    given = {"idle_seconds": 0.02, "timeouts": QUICK, **changes}
    return SmtpSettings((Endpoint(name, "127.0.0.1", port),), "out.example.org", **given)  # type: ignore[arg-type]


def through_stranger(
    collector: Collector, options: dict[str, object], *attempts: Attempt, **changes: object
) -> Closed | Unavailable:
    async def run() -> Closed | Unavailable:
        feed = ListFeed(*attempts)
        async with stranger(collector, **options) as port:
            end = await asyncio.wait_for(SmtpTransport(settings(port, **changes)).run(feed), 20)
        feed.assert_all_reported()
        assert all(isinstance(outcome, Relayed) for each in feed.order for outcome in feed.of(each))
        return end

    return asyncio.run(run())


def through_script(server: ScriptedServer, **changes: object) -> tuple[Closed | Unavailable, ListFeed]:
    async def run() -> tuple[Closed | Unavailable, ListFeed]:
        feed = ListFeed(attempt())
        async with server.running():
            end = await asyncio.wait_for(SmtpTransport(settings(server.port, **changes)).run(feed), 10)
        feed.assert_all_reported()
        return end, feed

    return asyncio.run(run())


def test_a_stranger_gets_what_was_accepted_octet_by_octet() -> None:
    collector = Collector()
    body = b"Subject: x\r\n\r\n" + b"y" * 500 + b"\r\nz\r\n"
    assert through_stranger(collector, {}, attempt(body=body), attempt("a@example.net", "b@example.net")) == Closed(2)
    assert collector.contents[0] == TRACE + body
    assert len(collector.contents) == 2
    assert collector.tls == [False, False]


def test_tls_is_used_where_it_is_offered(context: ssl.SSLContext) -> None:
    collector = Collector()
    assert through_stranger(collector, {"tls_context": context}, attempt(), attempt()) == Closed(2)
    assert collector.tls == [True, True]


def test_tls_is_not_used_where_the_route_says_never(context: ssl.SSLContext) -> None:
    collector = Collector()
    through_stranger(collector, {"tls_context": context}, attempt(), tls=TlsMode.NEVER)
    assert collector.tls == [False]


def test_a_large_content_passes_through_tls_whole(context: ssl.SSLContext, tmp_path: Path) -> None:
    body = b"0123456789abcd\r\n" * 150_000
    (tmp_path / "content").write_bytes(body)
    collector = Collector()
    through_stranger(
        collector,
        {"tls_context": context},
        attempt(file=ContentFile(str(tmp_path / "content"), 0, len(body))),
        attempt(),
    )
    assert collector.contents[0] == TRACE + body
    assert collector.tls == [True, True]


def test_a_certificate_that_names_the_host_is_enough_for_verified(context: ssl.SSLContext, ca_file: Path) -> None:
    collector = Collector()
    through_stranger(collector, {"tls_context": context}, attempt(), tls=TlsMode.VERIFIED, ca_file=ca_file)
    assert collector.tls == [True]


@pytest.mark.parametrize(("name", "knows_authority"), [("mx.example.org", True), ("mx.example.net", False)])
def test_a_certificate_that_proves_nothing_stops_verified(
    context: ssl.SSLContext, ca_file: Path, name: str, knows_authority: bool
) -> None:
    async def run() -> Closed | Unavailable:
        feed = ListFeed(attempt())
        async with stranger(Collector(), tls_context=context) as port:
            chosen = settings(port, name, tls=TlsMode.VERIFIED, ca_file=ca_file if knows_authority else None)
            end = await asyncio.wait_for(SmtpTransport(chosen).run(feed), 20)
        assert feed.taken == []
        return end

    end = asyncio.run(run())
    assert isinstance(end, Unavailable)
    assert (end.reason.slug, end.status) == ("tls-failed", "4.7.5")
    assert "certificate" in end.reason.words


@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.VERIFIED])
def test_implicit_tls_comes_before_the_greeting(context: ssl.SSLContext, ca_file: Path, mode: TlsMode) -> None:
    async def run() -> None:
        server = ScriptedServer()
        listening = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=context)
        port = listening.sockets[0].getsockname()[1]
        feed = ListFeed(attempt())
        end = await asyncio.wait_for(
            SmtpTransport(settings(port, implicit_tls=True, tls=mode, ca_file=ca_file)).run(feed), 10
        )
        listening.close()
        await listening.wait_closed()
        assert end == Closed(1)
        feed.assert_all_reported()
        assert len(server.contents) == 1

    asyncio.run(run())


def test_implicit_tls_is_never_given_up() -> None:
    server = ScriptedServer()
    end, _ = through_script(server, implicit_tls=True)
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "tls-failed"
    assert server.lines == [] or "EHLO" not in server.lines[0]


# --- broken TLS


async def not_tls(heard: Heard, _line: str) -> None:
    await heard.say("220 Go")
    await heard.reader.read(1)
    heard.writer.write(b"this is not TLS, is it?\r\n")
    await heard.reader.read()


async def hang_up_in_handshake(heard: Heard, _line: str) -> None:
    await heard.say("220 Go")
    await heard.reader.read(1)
    heard.reset()


async def hang_in_handshake(heard: Heard, _line: str) -> None:
    await heard.say("220 Go")
    await heard.reader.read()


async def inject(heard: Heard, _line: str) -> None:
    await heard.say("220 Go", "250-mx", "250 AUTH PLAIN")
    await heard.reader.read()


BROKEN_TLS = pytest.mark.parametrize("trouble", [not_tls, hang_up_in_handshake, hang_in_handshake])
HASTY_TLS = ClientTimeouts(connect=3, tls=0.2, greeting=3, command=3, mail=3, rcpt=3, data=3, content_end=3, quit=0.3)


@BROKEN_TLS
def test_opportunistic_tls_that_fails_is_followed_by_one_try_in_the_clear(trouble: object) -> None:
    server = ScriptedServer(TLS_OFFERED, STARTTLS=trouble)  # type: ignore[arg-type]
    end, _ = through_script(server, timeouts=HASTY_TLS)
    assert end == Closed(1)
    assert len(server.connections) == 2
    assert "STARTTLS" not in server.connections[1].lines
    assert len(server.contents) == 1


@BROKEN_TLS
@pytest.mark.parametrize(
    "changes", [{"tls": TlsMode.REQUIRED}, {"login": Login("user", "secret")}], ids=["required", "login"]
)
def test_tls_that_fails_is_the_end_where_it_matters(trouble: object, changes: dict[str, object]) -> None:
    server = ScriptedServer((*TLS_OFFERED, "AUTH PLAIN"), STARTTLS=trouble)  # type: ignore[arg-type]
    end, _ = through_script(server, timeouts=HASTY_TLS, **changes)
    assert isinstance(end, Unavailable)
    assert len(server.connections) == 1
    assert server.contents == []
    assert not any(line.startswith("AUTH") for line in server.lines)


@pytest.mark.parametrize("mode", [TlsMode.OPPORTUNISTIC, TlsMode.REQUIRED])
def test_octets_behind_the_reply_to_starttls_are_never_believed(mode: TlsMode) -> None:
    server = ScriptedServer(TLS_OFFERED, STARTTLS=inject)
    end, feed = through_script(server, tls=mode, login=Login("user", "secret"))
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "next-hop-broken"
    assert feed.taken == []
    assert len(server.connections) == 1


def test_starttls_refused_means_the_clear_or_nothing() -> None:
    server = ScriptedServer(TLS_OFFERED, STARTTLS="454 4.7.0 not now")
    end, _ = through_script(server)
    assert end == Closed(1)
    assert len(server.connections) == 1
    end, feed = through_script(ScriptedServer(TLS_OFFERED, STARTTLS="454 4.7.0 not now"), tls=TlsMode.REQUIRED)
    assert isinstance(end, Unavailable)
    assert (end.reason.slug, end.status, end.diagnostic) == ("tls-failed", "4.7.4", "454 4.7.0 not now")
    assert feed.taken == []


@pytest.mark.parametrize("mode", [TlsMode.REQUIRED, TlsMode.VERIFIED])
def test_starttls_stripped_from_the_offer_stops_required(mode: TlsMode) -> None:
    server = ScriptedServer()
    end, feed = through_script(server, tls=mode)
    assert isinstance(end, Unavailable)
    assert end.status == "4.7.4"
    assert feed.taken == []
    assert server.contents == []


# --- login


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_smart_host_hears_the_login_under_tls(context: ssl.SSLContext, mechanism: str) -> None:
    def authenticate(_server: object, _session: object, _envelope: object, _mechanism: str, data: object) -> AuthResult:
        is_right = (data.login, data.password) == (b"user", b"secret")  # type: ignore[attr-defined]
        return AuthResult(success=is_right, auth_data=data.login)  # type: ignore[attr-defined]

    collector = Collector()
    other = "LOGIN" if mechanism == "PLAIN" else "PLAIN"
    options = {
        "tls_context": context,
        "authenticator": authenticate,
        "auth_required": True,
        "auth_exclude_mechanism": [other],
    }
    assert through_stranger(
        collector, options, attempt(), login=Login("user", "secret"), tls=TlsMode.REQUIRED
    ) == Closed(1)
    assert collector.logins == [b"user"]


def test_a_refused_login_says_so_and_takes_nothing() -> None:
    server = ScriptedServer((*TLS_OFFERED[:2], "AUTH PLAIN"), AUTH="535 5.7.8 wrong")
    end, feed = through_script(server, login=Login("user", "secret"))
    assert isinstance(end, Unavailable)
    assert (end.reason.slug, end.is_permanent) == ("login-refused", False)
    assert "secret" not in end.reason.words
    assert feed.taken == []


def test_a_login_that_is_not_offered_is_not_tried() -> None:
    end, _ = through_script(ScriptedServer((*TLS_OFFERED[:2], "AUTH CRAM-MD5")), login=Login("user", "secret"))
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "login-refused"


def test_a_password_is_not_said_in_the_clear_to_another_machine() -> None:
    def may_be_heard(address: str, mode: TlsMode) -> bool:
        chosen = SmtpSettings((), "out.example.org", tls=mode)
        return _Opening(chosen, Endpoint("mx.example.net", address, 25))._may_be_heard()

    assert not may_be_heard("192.0.2.1", TlsMode.OPPORTUNISTIC)
    assert not may_be_heard("2001:db8::1", TlsMode.REQUIRED)
    assert may_be_heard("192.0.2.1", TlsMode.NEVER)
    assert may_be_heard("127.0.0.1", TlsMode.OPPORTUNISTIC)


def test_a_password_is_not_shown_by_accident() -> None:
    assert "secret" not in repr(Login("user", "secret"))


@pytest.mark.parametrize("changes", [{"hello_name": "bad name"}, {"login": Login("user", "a\0b")}])
def test_what_cannot_be_said_is_a_fault_of_configuration(changes: dict[str, object]) -> None:
    async def run() -> Closed | Unavailable:
        server = ScriptedServer(("AUTH PLAIN",))
        async with server.running():
            given = {"hello_name": "out.example.org", "timeouts": QUICK, **changes}
            return await SmtpTransport(
                SmtpSettings((Endpoint("mx.example.net", "127.0.0.1", server.port),), **given)  # type: ignore[arg-type]
            ).run(ListFeed(attempt()))

    end = asyncio.run(run())
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "configuration"
