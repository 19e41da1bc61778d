"""The channel between supervisor and worker: both ask, sockets travel, an end is noticed by all who wait."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from posthouse.config import default_config
from posthouse.serve.channel import Channel, ChannelClosed, ChannelRefusal
from posthouse.serve.start import ListenerSocket, Prepare, WorkerStart, prepare_from, start_from, to_arguments


async def _echo(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if verb == "refuse":
        raise ChannelRefusal("not today")
    if verb == "break":
        raise KeyError("x")
    if verb == "wait":
        await asyncio.sleep(60)
    return {"verb": verb, **arguments}


def _with_channel(talk: Callable[[Channel, Channel], Awaitable[None]]) -> None:
    async def run() -> None:
        (a, b), (c, d) = socket.socketpair(), socket.socketpair()
        one, other = await Channel.over(a, _echo, c), await Channel.over(b, _echo, d)
        try:
            await asyncio.wait_for(talk(one, other), 10)
        finally:
            one.close()
            other.close()

    asyncio.run(run())


def test_both_sides_ask_at_once_and_get_their_own_answers() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        asked = [side.request("say", n=n) for n in range(50) for side in (one, other)]
        assert [answer["n"] for answer in await asyncio.gather(*asked)] == [n for n in range(50) for _ in range(2)]

    _with_channel(talk)


def test_what_is_told_is_heard_in_its_order_and_a_fault_in_hearing_ends_nothing() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        heard: list[int] = []

        def hear(_verb: str, arguments: dict[str, Any]) -> None:
            heard.append(arguments["n"])
            if arguments["n"] == 7:
                raise KeyError("x")

        other.heard = hear
        for n in range(50):
            one.tell("note", {"n": n})
        assert await one.request("say", n=1) == {"verb": "say", "n": 1}  # asked behind them
        assert heard == list(range(50))
        other.close()
        await one.closed.wait()
        one.tell("note", {"n": 51})  # nobody is there: nothing happens

    _with_channel(talk)


def test_refusal_arrives_as_its_sentence_and_a_fault_as_its_name() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        del other
        with pytest.raises(ChannelRefusal, match="not today"):
            await one.request("refuse")
        with pytest.raises(ChannelRefusal, match="break failed: KeyError"):
            await one.request("break")
        assert await one.request("ping") == {}

    _with_channel(talk)


def test_late_answer_is_dropped_and_the_channel_goes_on() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        del other
        with pytest.raises(TimeoutError):
            await one.request("wait", timeout=0.05)
        assert (await one.request("say", n=1))["n"] == 1

    _with_channel(talk)


def test_end_of_one_side_ends_all_that_waits_on_the_other() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        waiting = asyncio.ensure_future(one.request("wait"))
        await asyncio.sleep(0)
        other.close()
        with pytest.raises(ChannelClosed):
            await waiting
        assert one.closed.is_set()
        with pytest.raises(ChannelClosed, match="answer say"):
            await one.request("say")

    _with_channel(talk)


def test_sockets_travel_in_their_order_and_too_few_are_noticed() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        sent = [socket.create_server(("127.0.0.1", 0)) for _ in range(70)]
        one.send_sockets(sent)
        taken = await other.take_sockets(70)
        assert [got.getsockname() for got in taken] == [one.getsockname() for one in sent]
        for each in (*sent, *taken):
            each.close()
        with pytest.raises(ChannelClosed, match="fewer sockets"):
            await other.take_sockets(1)

    _with_channel(talk)


def test_line_that_is_no_json_ends_the_channel_and_nothing_else() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.over(ours, _echo)
        theirs.sendall(b"hello\n")
        await asyncio.wait_for(channel.closed.wait(), 10)
        theirs.close()

    asyncio.run(run())


def test_configuration_travels_whole(tmp_path: Path) -> None:
    config = default_config()
    told = WorkerStart(config, 1, 2, (1, 3), (ListenerSocket(0, 7),), 8, relay_enabled=False)
    assert start_from(to_arguments(told)) == told
    prepare = Prepare(config, ((0, 0),), (1,))
    assert prepare_from(to_arguments(prepare)) == prepare
