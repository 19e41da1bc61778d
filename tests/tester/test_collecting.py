"""Receipts on disk, the question over the network, and the way that a probe took."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from posthouse.net.listen import listen
from posthouse.tester.asking import AskServer, RemoteCollector
from posthouse.tester.collector import CollectorFault, Receipt, await_receipts
from posthouse.tester.receipts import MOST_PER_TOKEN, LocalCollector, ReceiptsFull, ReceiptStore, read_receipts
from posthouse.tester.token import Purpose, TokenKey, new_key
from posthouse.tester.trail import path_of, signed_by

NOW = 1_790_000_000.0
EDGE = "from tester.test (tester.test [198.51.100.4]) by edge.test (Postfix) with ESMTP id 1; Mon, 1 Jan 2024 00:00:00 +0000"
SMART = "from edge.test ([192.0.2.1]) by smart.test with ESMTPS id 2 for <a@b.test>; Mon, 1 Jan 2024 00:00:01 +0000"


def receipt(case: int = 1, *, test: int = 5, token: str = "", at: float = NOW, **more: object) -> Receipt:
    values = {
        "client": "192.0.2.9",
        "hello_name": "smart.test",
        "reverse_path": "<>",
        "forward_path": "x@collector.test",
    }
    purpose = more.pop("purpose", Purpose.PROBE)
    return Receipt(test, case, purpose, token or f"token{case}", at, **(values | more))  # type: ignore[arg-type]


def test_receipts_come_back_as_they_were_recorded_and_for_their_test_only(tmp_path: Path) -> None:
    file = tmp_path / "tester" / "receipts.db"
    assert read_receipts(file, 5) == ()
    one = receipt(received=(SMART, EDGE), header="Subject: ä\r\n", size_bytes=9)
    notice, other = receipt(2, purpose=Purpose.BOUNCE), receipt(1, test=6)
    store, beside = ReceiptStore(file, 1000), ReceiptStore(file, 1000)
    store.record((one, notice))
    beside.record((other,))
    assert read_receipts(file, 5) == (one, notice)
    assert read_receipts(file, 6) == (other,)
    assert file.stat().st_mode & 0o022 == 0
    store.close()
    beside.close()


def test_receipts_of_one_token_are_bounded_and_old_ones_go(tmp_path: Path) -> None:
    store = ReceiptStore(tmp_path / "t" / "r.db", 1000)
    store.record(tuple(receipt() for _ in range(MOST_PER_TOKEN)))
    with pytest.raises(ReceiptsFull):
        store.record((receipt(2), receipt()))
    assert len(read_receipts(tmp_path / "t" / "r.db", 5)) == MOST_PER_TOKEN  # all or none
    store.record((receipt(3, at=NOW + 5000),))
    assert [one.case_number for one in read_receipts(tmp_path / "t" / "r.db", 5)] == [3]
    store.close()


def test_receipts_that_cannot_be_kept_or_read_are_said_to_be_so(tmp_path: Path) -> None:
    file = tmp_path / "receipts.db"
    file.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(CollectorFault, match="can't keep receipts"):
        ReceiptStore(file, 1)
    with pytest.raises(CollectorFault, match="can't read"):
        read_receipts(file, 1)


def test_waiting_ends_when_all_have_arrived_or_when_patience_is_over(tmp_path: Path) -> None:
    file = tmp_path / "t" / "r.db"
    collector = LocalCollector("collector.test", file)

    async def both() -> tuple[Receipt, ...]:
        waiting = asyncio.create_task(await_receipts(collector, 5, {1, 2}, 30))
        store = ReceiptStore(file, 1000)
        store.record((receipt(1), receipt(2, purpose=Purpose.BOUNCE)))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "a notice is no arrival of the probe"
        store.record((receipt(2),))
        store.close()
        return await waiting

    assert len(asyncio.run(both())) == 3
    assert len(asyncio.run(await_receipts(collector, 5, {1, 7}, 0.05))) == 3


def test_waiting_on_a_collector_that_cannot_be_asked_is_a_fault_not_an_answer() -> None:
    class Gone:
        domain = "collector.test"

        async def receipts(self, _test_id: int) -> tuple[Receipt, ...]:
            raise CollectorFault("gone")

        async def close(self) -> None:
            """Nothing."""

    with pytest.raises(CollectorFault):
        asyncio.run(await_receipts(Gone(), 1, {1}, 0.3))


@contextlib.asynccontextmanager
async def asked(file: Path, key: TokenKey, clock_ahead: float = 0.0) -> AsyncIterator[str]:
    listening = listen("127.0.0.1", 0)[0]
    port = listening.getsockname()[1]
    server = AskServer("collector.test", file, key, lambda: time.time() + clock_ahead)
    await server.start(listening)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def test_another_posthouse_that_shares_the_key_learns_the_receipts(tmp_path: Path) -> None:
    file, key = tmp_path / "t" / "r.db", new_key()
    store = ReceiptStore(file, 1000)
    store.record((receipt(1, received=(EDGE,)),))
    store.close()

    async def ask() -> tuple[Receipt, ...]:
        async with asked(file, key) as url:
            assert await RemoteCollector("collector.test", url + "/", key).receipts(99) == ()
            return await RemoteCollector("collector.test", url, key).receipts(5)

    assert asyncio.run(ask()) == read_receipts(file, 5)


@pytest.mark.parametrize(
    ("clock_ahead", "same_key", "words"), [(0, False, "not signed with the key"), (900, True, "clocks")]
)
def test_another_key_or_clock_learns_nothing(tmp_path: Path, clock_ahead: float, same_key: bool, words: str) -> None:
    async def ask() -> None:
        key = new_key()
        async with asked(tmp_path / "none", key, clock_ahead) as url:
            await RemoteCollector("collector.test", url, key if same_key else new_key()).receipts(5)

    with pytest.raises(CollectorFault, match=words):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n"
        + msgspec.json.encode({"domain": "c", "receipts": []}).ljust(40),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Posthouse-Signature: \xe4\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 20_000,
        b"",
    ],
)
def test_answer_that_is_not_our_collectors_is_no_answer(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await RemoteCollector("collector.test", f"http://127.0.0.1:{port}", new_key()).receipts(5)
        finally:
            server.close()

    with pytest.raises(CollectorFault, match="collector"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /receipts HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /receipts HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /receipts HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b'POST /receipts HTTP/1.1\r\nX-Posthouse-Signature: \xff\r\nContent-Length: 9\r\n\r\n{"a": \xff1}',
        b"\x16\x03\x01" + b"\0" * 10_000,
    ],
)
def test_question_that_is_none_gets_no_receipt_and_the_next_one_is_answered(
    tmp_path: Path, request_text: bytes
) -> None:
    async def ask() -> bytes:
        key = new_key()
        async with asked(tmp_path / "none", key) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(request_text)
            with contextlib.suppress(OSError):
                said = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert await RemoteCollector("collector.test", url, key).receipts(5) == ()
            return said

    said = asyncio.run(ask())
    assert b"200 OK" not in said


def test_collector_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(CollectorFault, match="did not answer"):
        asyncio.run(RemoteCollector("collector.test", "http://127.0.0.1:1", new_key()).receipts(1))


@pytest.mark.parametrize(
    ("received", "name"),
    [
        (EDGE, "edge.test"),
        (SMART, "smart.test"),
        ("by Alone.Test. with SMTP; x", "alone.test"),
        ("from a (b)\tby\r\n c.test; x", "c.test"),
        ("from x by localhost (amavis); x", ""),
        ("(qmail 1 invoked by uid 0); x", ""),
        ("from standby.test; x", ""),
    ],
)
def test_received_field_says_who_wrote_it(received: str, name: str) -> None:
    assert signed_by(received) == name


@pytest.mark.parametrize(
    ("received", "client", "is_multi_hop"),
    [
        ((EDGE,), "192.0.2.1", False),
        ((EDGE,), "192.0.2.77", False),  # another address of the same host
        ((SMART, EDGE), "192.0.2.9", True),
        ((SMART, EDGE), "192.0.2.1", True),  # behind the same address
        ((EDGE.replace("tester", "localhost"), "from a by localhost (amavis); x", EDGE), "192.0.2.1", False),
        ((), "192.0.2.1", False),
        ((), "192.0.2.9", True),
    ],
)
def test_input_and_output_host_are_told_apart(received: tuple[str, ...], client: str, is_multi_hop: bool) -> None:
    path = path_of(receipt(received=received, client=client), "192.0.2.1")
    assert (path.input_host, path.output_host, path.is_multi_hop) == ("192.0.2.1", client, is_multi_hop)
    assert [hop.field for hop in path.hops] == list(reversed(received))
