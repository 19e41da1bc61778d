"""The driver of the server side, over real sockets."""

import asyncio
import base64
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

import pytest
import trustme

from posthouse.mail.reason import Slug
from posthouse.net.connection import Timeouts, _peer_of
from posthouse.policy.facts import Role
from posthouse.relay.session import Verified
from posthouse.smtp.server import ServerSettings
from serving import serving


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 30))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


LETTER = ["MAIL FROM:<a@there.test>", "RCPT TO:<b@there.test>", "DATA"]


def test_a_message_is_taken_and_its_octets_are_untouched() -> None:
    async def scene() -> None:
        async with serving() as served:
            talk = await served.connect()
            await talk.hello()
            for line in LETTER:
                await talk.say(line)
            assert (await talk.say(b"Subject: x\r\n\r\n..dot\r\n\xff\r\n.\r\n")).startswith("250 2.0.0 Queued as ")
            assert served.kept.contents == [b"Subject: x\r\n\r\n..dot\r\n\xff\r\n"]
            assert (await talk.say("QUIT")).startswith("221")
            assert await talk.reply() == ""

    run(scene)


def test_a_pipelined_flight_is_answered_in_order_and_in_one_write() -> None:
    async def scene() -> None:
        async with serving() as served:
            talk = await served.connect()
            await talk.hello()
            await talk.send(*LETTER)
            data = await talk.reader.read(4096)
            assert [line[:3] for line in data.splitlines()] == [b"250", b"250", b"354"]

    run(scene)


def test_the_refusal_of_a_bare_line_feed_reaches_the_client_and_the_connection_ends() -> None:
    async def scene() -> None:
        async with serving() as served:
            talk = await served.connect()
            await talk.hello()
            for line in LETTER:
                await talk.say(line)
            rest = b"x" * 100_000  # octets still under way must not turn the close into a reset
            await talk.send(b"Subject: x\r\n\r\nsmuggled\n.\n" + b"MAIL FROM:<evil@x.test>\r\n" + rest)
            assert (await talk.reply()).startswith("550 5.5.2")
            assert await talk.reader.read() == b""
            assert served.kept.messages == []

    run(scene)


def test_starttls_forgets_what_was_said_and_throws_away_what_was_pipelined(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async def scene() -> None:
        async with serving(tls=lambda: server_context) as served:
            talk = await served.connect("127.0.0.2")
            assert "STARTTLS" in await talk.hello()
            await talk.say("MAIL FROM:<a@there.test>")
            await talk.send(b"STARTTLS\r\nRSET\r\nNOOP\r\n")
            assert (await talk.reply()).startswith("503")  # not in a transaction
            await talk.reply()
            await talk.reply()
            await talk.send(b"STARTTLS\r\nMAIL FROM:<injected@evil.test>\r\n")
            assert (await talk.reply()).startswith("220")
            await talk.writer.start_tls(client_context, server_hostname="localhost")
            assert (await talk.say("MAIL FROM:<a@there.test>")).startswith("503")  # EHLO again first
            capabilities = await talk.say("EHLO client.test")
            assert "STARTTLS" not in capabilities
            assert "AUTH PLAIN LOGIN" in capabilities
            assert (await talk.say("MAIL FROM:<a@there.test>")).startswith("250")
            await talk.close()

    run(scene)


def test_accounts_that_cannot_be_read_are_no_fault_of_the_client() -> None:
    async def nobody_can_tell(_login: str, _password: str, _client: str) -> Verified:
        return Verified(is_right=False, unavailable="Logins can't be checked now; try again later")

    async def scene() -> None:
        async with serving(verify=nobody_can_tell) as served:
            talk = await served.connect()
            await talk.hello()
            answer = await talk.say("AUTH PLAIN " + base64.b64encode(b"\0anna\0secret").decode())
            assert answer == "454 4.7.0 Logins can't be checked now; try again later"
            assert served.spool.refusals == {}
            await talk.close()

    run(scene)


def test_implicit_tls_and_a_login_may_relay(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async def scene() -> None:
        async with serving(role=Role.SUBMISSION, tls=lambda: server_context, implicit_tls=True) as served:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", served.port, ssl=client_context, server_hostname="localhost", local_addr=("127.0.0.2", 0)
            )
            from serving import Talk

            talk = Talk(reader, writer)
            await talk.hello()
            wrong = base64.b64encode(b"\0anna\0guess").decode()
            right = base64.b64encode(b"\0anna\0secret").decode()
            assert (await talk.say(f"AUTH PLAIN {wrong}")).startswith("535 5.7.8")
            assert served.spool.refusals == {("127.0.0.2", "", Slug.LOGIN_WRONG): 1}
            assert (await talk.say(f"AUTH PLAIN {right}")).startswith("235 2.7.0")
            await talk.send(*LETTER)
            for _ in LETTER:
                await talk.reply()
            assert (await talk.say(b"a\r\n.\r\n")).startswith("250")
            envelope, message = served.kept.messages[0]
            assert envelope.origin.login == "anna"
            assert envelope.origin.tls.startswith("TLSv1.")
            assert envelope.recipients[0].grant.kind == "authenticated-user"
            assert b" with ESMTPSA id " in message.trace
            assert b"anna" not in message.trace
            await talk.close()

    run(scene)


def test_a_password_is_not_taken_in_the_clear_from_another_machine() -> None:
    async def scene() -> None:
        settings = ServerSettings("relay.test", auth_mechanisms=("PLAIN",))
        async with serving(settings=settings, is_proxy=lambda _address: True) as served:
            talk = await served.connect()
            await talk.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
            assert "AUTH" not in await talk.hello()
            assert (await talk.say("AUTH PLAIN AGEAYg==")).startswith("5")

    run(scene)


@pytest.mark.parametrize(
    ("header", "client", "code"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "192.0.2.7", "550 5.7.1"),
        (b"PROXY TCP4 127.0.0.1 192.0.2.1 4711 25\r\n", "127.0.0.1", "250"),
        (b"PROXY TCP6 ::1 ::1 4711 25\r\n", "::1", "550"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1", "550"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x12\x67\0\x19", "192.0.2.7", "550"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "127.0.0.1", "550"),  # LOCAL
    ],
)
def test_the_address_after_proxy_decides(header: bytes, client: str, code: str) -> None:
    async def scene() -> None:
        async with serving(is_proxy=lambda address: address == "127.0.0.1") as served:
            talk = await served.connect()
            await talk.send(header)
            await talk.hello()
            await talk.say("MAIL FROM:<a@there.test>")
            assert (await talk.say("RCPT TO:<b@elsewhere.test>")).startswith(code)
            assert client in {connection.peer.address for connection in served.server.connections}

    run(scene)


@pytest.mark.parametrize("first", [b"EHLO client.test\r\n", b"PROXY TCP4 nonsense\r\n", b"PROXY " + b"x" * 200])
def test_no_proxy_header_no_session(first: bytes) -> None:
    async def scene() -> None:
        async with serving(is_proxy=lambda _address: True) as served:
            talk = await served.connect()
            await talk.send(first)
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert await talk.reader.read() != b""

    run(scene)


def test_a_client_that_is_not_a_named_proxy_gets_no_session() -> None:
    async def scene() -> None:
        async with serving(is_proxy=lambda address: address == "127.0.0.9") as served:
            talk = await served.connect("127.0.0.2")
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert await talk.reader.read() != b""

    run(scene)


def test_one_octet_a_second_does_not_move_the_deadline_of_a_command() -> None:
    async def scene() -> None:
        async with serving(timeouts=Timeouts(command=1.5)) as served:
            talk = await served.connect()
            await talk.reply()
            quick = await served.connect()
            await quick.reply()
            for _ in range(5):
                await talk.send(b"E")
                await asyncio.sleep(0.4)
                await quick.say("NOOP")  # nobody else is slowed, and a talker keeps its session
            assert (await talk.reply()).startswith("421 4.4.2")
            assert (await quick.say("NOOP")).startswith("250")

    run(scene)


def test_more_connections_from_one_address_than_allowed_get_421() -> None:
    async def scene() -> None:
        async with serving(most_per_client=3) as served:
            talks = [await served.connect("127.0.0.3") for _ in range(4)]
            greetings = [await talk.reply() for talk in talks]
            assert [greeting[:3] for greeting in greetings] == ["220", "220", "220", "421"]
            other = await served.connect("127.0.0.4")
            assert (await other.reply()).startswith("220")
            await talks[0].close()
            await asyncio.sleep(0.1)
            assert (await (await served.connect("127.0.0.3")).reply()).startswith("220")

    run(scene)


def test_stopping_says_421_to_the_idle_and_lets_a_transaction_end() -> None:
    async def scene() -> None:
        async with serving() as served:
            idle = await served.connect()
            await idle.hello()
            busy = await served.connect()
            await busy.hello()
            for line in LETTER:
                await busy.say(line)
            stopping = asyncio.ensure_future(served.server.stop(10))
            assert (await idle.reply()).startswith("421")
            assert (await busy.say(b"a\r\n.\r\n")).startswith("250")
            assert (await busy.reply()).startswith("421")
            await stopping
            assert len(served.kept.messages) == 1

    run(scene)


def test_a_client_that_vanishes_after_the_final_dot_leaves_its_message() -> None:
    async def scene() -> None:
        async with serving() as served:
            talk = await served.connect()
            await talk.hello()
            await talk.send(*LETTER, b"a\r\n.\r\n")
            talk.writer.transport.abort()
            other = await served.connect()
            await other.hello()
            assert len(served.kept.messages) <= 1  # acknowledged or not, nothing breaks

    run(scene)


def test_errors_are_slowed_and_then_cut_with_421() -> None:
    async def scene() -> None:
        settings = ServerSettings("relay.test", errors_slow=2, errors_close=4)
        async with serving(settings=settings) as served:
            talk = await served.connect()
            await talk.hello()
            began = asyncio.get_running_loop().time()
            replies = [await talk.say("BOGUS") for _ in range(4)]
            assert replies[-1].startswith("421")
            assert asyncio.get_running_loop().time() - began > 0.5
            assert await talk.reader.read() == b""

    run(scene)


def test_too_little_space_is_452_and_the_next_message_is_taken_again() -> None:
    async def scene() -> None:
        async with serving(room_bytes=1000) as served:
            talk = await served.connect()
            await talk.hello()
            assert (await talk.say("MAIL FROM:<a@there.test> SIZE=2000")).startswith("452 4.3.1")
            assert (await talk.say("MAIL FROM:<a@there.test> SIZE=10")).startswith("250")

    run(scene)


def test_a_large_content_goes_to_a_sink_and_comes_back_whole() -> None:
    async def scene() -> None:
        async with serving() as served:
            talk = await served.connect()
            await talk.hello()
            for line in LETTER:
                await talk.say(line)
            body = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 20_000
            assert (await talk.say(body + b".\r\n")).startswith("250")
            assert served.kept.messages[0][1].content.size_bytes == len(body)

    run(scene)


def test_a_half_closed_client_still_gets_its_answers() -> None:
    async def scene() -> None:
        async with serving() as served:
            with socket.create_connection(("127.0.0.1", served.port)) as sock:
                sock.sendall(b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
                loop = asyncio.get_running_loop()
                sock.setblocking(False)
                await asyncio.sleep(0.1)
                await loop.sock_sendall(sock, b"x\r\n.\r\n")
                sock.shutdown(socket.SHUT_WR)
                data = b""
                while piece := await loop.sock_recv(sock, 4096):
                    data += piece
                assert b"250 2.0.0 Queued as" in data

    run(scene)


def test_a_proxied_client_with_port_0_and_one_of_a_link_local_network_are_served() -> None:
    async def scene() -> None:
        async with serving(is_proxy=lambda _address: True) as served:
            for header in (b"PROXY TCP4 127.0.0.1 127.0.0.1 0 0\r\n", b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"):
                talk = await served.connect()
                await talk.send(header)
                await talk.hello()
                for line in ("MAIL FROM:<a@there.test>", "RCPT TO:<b@here.test>", "DATA"):
                    await talk.say(line)
                assert (await talk.say(b"x\r\n.\r\n")).startswith("250")
                await talk.close()

    run(scene)


class FakeSocket:
    def __init__(self, family: int, credentials: bytes = b"") -> None:
        self.family = family
        self._credentials = credentials

    def getsockopt(self, _level: int, _option: int, _octets: int) -> bytes:
        return self._credentials


class FakeTransport:
    def __init__(self, sock: FakeSocket, name: object = None) -> None:
        self._known = {"socket": sock, "peername": name}

    def get_extra_info(self, what: str) -> object:
        return self._known[what]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("fe80::1%eth0", 25, 0, 2), "fe80::1"),
        (("::ffff:192.0.2.1", 25, 0, 0), "192.0.2.1"),
        (("192.0.2.1", 25), "192.0.2.1"),
        (None, ""),
    ],
)
def test_the_peer_is_known_by_its_address_alone(name: object, address: str) -> None:
    assert _peer_of(FakeTransport(FakeSocket(socket.AF_INET6), name)).address == address  # type: ignore[arg-type]


def test_a_uid_beyond_two_to_the_31_is_a_uid() -> None:
    credentials = struct.pack("iII", 4711, 4_294_967_294, 0)
    assert _peer_of(FakeTransport(FakeSocket(socket.AF_UNIX, credentials))).uid == 4_294_967_294  # type: ignore[arg-type]


def test_an_exempt_address_may_have_any_number_of_connections() -> None:
    async def scene() -> None:
        async with serving(most_per_client=2, is_exempt=lambda address: address == "127.0.0.3") as served:
            trusted = [await served.connect("127.0.0.3") for _ in range(5)]
            assert [(await talk.reply())[:3] for talk in trusted] == ["220"] * 5
            others = [await served.connect("127.0.0.4") for _ in range(3)]
            assert [(await talk.reply())[:3] for talk in others] == ["220", "220", "421"]

    run(scene)
