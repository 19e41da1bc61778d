"""A want of file descriptors: what can't be done now is put off, nothing is lost, nothing is taken for damaged, and it passes."""

import asyncio
import errno
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fault_sabotage import install
from peer_programs import running, wait_until
from posthouse.spool.api import SpoolBroken, SpoolError, SpoolFull
from posthouse.spool.sqlite import SqliteSpool
from posthouse_server import configured, cpu_seconds, route_to, workers_of
from siege import BODY, LETTER, Wire
from spooling import SMALL, accept, envelope, message, sqlite_spool

LARGE = b"x" * 50 + b"\r\n"


class Shortage:
    """No descriptor is free while `is_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on = False
        really_open = os.open

        def open_or_not(*arguments: Any, **options: Any) -> int:
            if self.is_on:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return really_open(*arguments, **options)

        monkeypatch.setattr("os.open", open_or_not)


def test_a_middling_content_without_a_descriptor_is_put_off_and_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(monkeypatch)

    async def scene() -> None:
        with sqlite_spool(tmp_path) as spool:
            first, second = spool.new_queue_id(), spool.new_queue_id()
            middling = message(b"Subject: x\r\n\r\n" + LARGE * 1000)
            shortage.is_on = True
            with pytest.raises(SpoolError) as caught:
                await accept(spool, (envelope(first), middling))
            assert not isinstance(caught.value, SpoolBroken | SpoolFull)
            shortage.is_on = False
            await accept(spool, (envelope(second), middling))
            assert spool.load(second)[1].content.size_bytes == middling.content.size_bytes
            shortage.is_on = True
            with pytest.raises(SpoolError) as caught:
                spool.load(second)
            assert type(caught.value) is SpoolError, "it is not damaged"
            shortage.is_on = False
            assert spool.pending(first) == []

    asyncio.run(scene())


def test_a_large_content_without_a_descriptor_is_put_off_and_the_next_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(monkeypatch)

    async def scene() -> None:
        broken: list[SpoolError] = []
        spool = SqliteSpool(tmp_path, 1, loop=asyncio.get_running_loop(), settings=SMALL, on_broken=broken.append)
        shortage.is_on = True
        sink = spool.open_sink(spool.new_queue_id())
        sink.write(LARGE * 1000)
        with pytest.raises(SpoolError) as caught:
            await sink.finish(message().content.dots, False)
        assert not isinstance(caught.value, SpoolBroken)
        sink.abandon()
        shortage.is_on = False
        sink = spool.open_sink(spool.new_queue_id())
        sink.write(LARGE * 1000)
        assert (await sink.finish(message().content.dots, False)).size_bytes == len(LARGE) * 1000
        sink.abandon()
        assert broken == []
        spool.close()
        assert spool._batches.own is not None
        assert spool._batches.own.octets_in_flight == 0

    asyncio.run(scene())


@pytest.mark.slow
def test_a_server_short_of_descriptors_sheds_connections_delivers_and_recovers() -> None:
    run_short_of_descriptors()


@pytest.mark.slow
def test_control_a_server_that_gives_strangers_every_descriptor_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", install(tmp_path, "no-reserve"))
    with pytest.raises(AssertionError):
        run_short_of_descriptors()


def run_short_of_descriptors() -> None:
    """A hundred descriptors, four hundred strangers: who was inside before is served, its mail delivered, and nothing spins."""
    with configured(
        """
        [relay]
        local_domains = ["here.test"]
        [limits]
        connections_per_client = 1000
        """
    ) as posthouse:
        posthouse.append(route_to(f"maildir:{posthouse.directory}/box", domain="here.test"))
        command = ["prlimit", "--nofile=100:100", sys.executable, "-m", "posthouse", "serve"]
        output = posthouse.directory / "output"
        ready = lambda: re.search(rb"^ready", output.read_bytes(), re.MULTILINE)  # noqa: E731
        arguments = [*command, "--config", str(posthouse.configuration)]
        with running(arguments, ready, posthouse.directory, dict(os.environ)) as process:
            (worker,) = workers_of(process.pid)
            inside = Wire(posthouse.port)
            inside.hello()
            flood = [socket.create_connection(("127.0.0.1", posthouse.port), timeout=5) for _ in range(400)]
            time.sleep(0.5)
            before = cpu_seconds(worker)
            large = b"Subject: x\r\n\r\n" + b"y" * 70 + (b"\r\n" + b"z" * 70) * 3000 + b"\r\n"
            for body in (BODY, large):
                inside.send(LETTER.replace(b"far.test", b"here.test") + body + b".\r\n")
                assert [inside.reply()[:3] for _ in range(4)] == ["250", "250", "354", "250"]
            box = posthouse.directory / "box" / "new"
            wait_until(lambda: box.is_dir() and len(list(box.iterdir())) == 2, "both messages to be delivered", 10)
            time.sleep(1.0)
            assert cpu_seconds(worker) - before < 0.7, "it spins"
            for one in flood:
                one.close()
            wait_until(lambda: _greets(posthouse.port), "it to accept again", 10)
            assert workers_of(process.pid) == [worker], "it was restarted"
        said = posthouse.output()
        assert "Traceback" not in said
        assert "worker-ended" not in said


def _greets(port: int) -> bool:
    try:
        wire = Wire(port)
        greeting = wire.reply()
        wire.close()
    except Exception:
        return False
    return greeting.startswith("220")
