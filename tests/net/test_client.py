"""The client's driver on real sockets: order of answers and losses, TLS cut in the middle, deadlines."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from posthouse.net.client import ClientChannel, ClientTimeouts, Endpoint, Loss, PeerLost, connect
from posthouse.net.tls import TlsLayer, client_context
from posthouse.smtp.address import NULL_PATH
from posthouse.smtp.client import Asked
from posthouse.smtp.event import DotForm

QUICK = ClientTimeouts(connect=2, tls=2, greeting=2, command=2, mail=2, rcpt=2, data=2, content_end=2, quit=0.2)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def talking_to(
    serve: Serve, timeouts: ClientTimeouts = QUICK, implicit_tls: ssl.SSLContext | None = None
) -> AsyncIterator[ClientChannel]:
    tasks: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def run() -> None:
            try:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await serve(reader, writer)
            finally:
                writer.transport.abort()

        tasks.append(asyncio.ensure_future(run()))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    endpoint = Endpoint("mx.example.net", "127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        channel = await connect(endpoint, timeouts, implicit_tls=implicit_tls)
        try:
            yield channel
        finally:
            channel.abort()
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # aborted transports end in the next turn of the loop


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 10)

    asyncio.run(bounded())


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.net").configure_cert(context)
    return context


def test_an_endpoint_is_named_as_people_read_it() -> None:
    assert str(Endpoint("mx.example.net", "192.0.2.1", 25)) == "mx.example.net [192.0.2.1]:25"
    assert str(Endpoint("", "2001:db8::1", 25)) == "2001:db8::1 [2001:db8::1]:25"
    assert str(Endpoint("localhost", socket_path="/run/lmtp")) == "/run/lmtp"


def test_answers_before_a_loss_are_heard_first() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        writer.close()
        await writer.wait_closed()

    async def test() -> None:
        async with talking_to(serve) as channel:
            while not channel.is_lost:
                await asyncio.sleep(0.001)
            assert (await channel.answer()).asked is Asked.GREETING
            with pytest.raises(PeerLost) as caught:
                await channel.answer()
            assert caught.value.loss is Loss.CLOSED
            with pytest.raises(PeerLost):
                await channel.flush()

    run(test())


def test_a_farewell_carries_its_reply() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n421 4.3.2 closing\r\n")

    async def test() -> None:
        async with talking_to(serve) as channel:
            await channel.answer()
            with pytest.raises(PeerLost) as caught:
                await channel.answer()
            assert caught.value.loss is Loss.FAREWELL
            assert caught.value.reply.code == 421

    run(test())


def test_each_wait_has_its_own_deadline_that_a_drip_does_not_move() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220-mx\r\n")
        for _ in range(1000):
            writer.write(b"220-still here\r\n")
            await asyncio.sleep(0.02)

    async def test() -> None:
        timeouts = ClientTimeouts(connect=2, greeting=0.2)
        async with talking_to(serve, timeouts) as channel:
            with pytest.raises(PeerLost) as caught:
                await channel.answer()
            assert caught.value.loss is Loss.TIMED_OUT
            assert "did not greet within 0.2 seconds" in caught.value.words

    run(test())


def test_quit_is_polite_and_patient_for_a_moment_only() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        heard.append(await reader.readline())
        await reader.read()

    async def test() -> None:
        async with talking_to(serve) as channel:
            await channel.answer()
            async with asyncio.timeout(30):  # not the five minutes of RFC 5321 4.5.3.2
                await channel.quit()
            assert channel.is_lost

    run(test())
    assert heard == [b"QUIT\r\n"]


def test_tls_after_close_notify_is_silence_whatever_is_sent(context: ssl.SSLContext) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = TlsLayer(context, server_side=True)
        tls.start()
        while not tls.is_handshake_done:
            tls.receive(await reader.read(65536))
            writer.write(tls.data_to_send())
        tls.encrypt(b"220 mx\r\n")
        tls.close()
        writer.write(tls.data_to_send())
        writer.write(b"250 in the clear\r\n")
        await reader.read()

    async def test() -> None:
        async with talking_to(serve, implicit_tls=client_context(verify=False)) as channel:
            assert (await channel.answer()).reply.code == 220
            assert channel.tls_description.startswith("TLSv1.3")
            channel.engine.hello("out.example.org")
            with contextlib.suppress(PeerLost):
                await channel.flush()
            with pytest.raises(PeerLost) as caught:
                await channel.answer()
            assert caught.value.loss is Loss.CLOSED
            assert "TLS" in caught.value.words

    run(test())


def test_a_damaged_record_loses_the_peer(context: ssl.SSLContext) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = TlsLayer(context, server_side=True)
        tls.start()
        while not tls.is_handshake_done:
            tls.receive(await reader.read(65536))
            writer.write(tls.data_to_send())
        writer.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        await reader.read()

    async def test() -> None:
        async with talking_to(serve, implicit_tls=client_context(verify=False)) as channel:
            with pytest.raises(PeerLost) as caught:
                await channel.answer()
            assert caught.value.loss is Loss.TLS

    run(test())


def test_a_file_is_sent_part_by_part_and_must_be_long_enough(tmp_path: Path) -> None:
    content = b"".join(b"line %d\r\n" % i for i in range(100_000))
    (tmp_path / "content").write_bytes(b"??" + content)
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        for answer in (b"250 Ok\r\n", b"250 Ok\r\n", b"354 Go\r\n"):
            await reader.readline()
            writer.write(answer)
        while data := await reader.read(65536):
            heard.extend(data)

    async def test() -> None:
        async with talking_to(serve) as channel:
            await channel.answer()
            engine = channel.engine
            for say in (lambda: engine.mail(NULL_PATH), lambda: engine.rcpt(NULL_PATH), engine.data):
                say()
                await channel.flush()
                await channel.answer()
            await channel.send_file(str(tmp_path / "content"), 2, len(content), DotForm.NONE)
            while len(heard) < len(content):
                await asyncio.sleep(0.001)
            with pytest.raises(OSError, match="ends before octet"):
                await channel.send_file(str(tmp_path / "content"), 2, len(content) + 1, DotForm.NONE)

    run(test())
    assert heard.startswith(content)


def test_not_reached_says_why() -> None:
    async def test() -> None:
        with pytest.raises(PeerLost) as caught:
            await connect(Endpoint("", socket_path="/nonexistent/socket"), QUICK)
        assert caught.value.loss is Loss.NOT_REACHED
        assert "no such file" in caught.value.words

    run(test())


def test_a_port_that_nobody_listens_on_is_not_reached() -> None:
    async def test() -> None:
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(PeerLost) as caught:
            await connect(Endpoint("", "127.0.0.1", port), ClientTimeouts(connect=0.2))
        assert caught.value.loss is Loss.NOT_REACHED

    run(test())
