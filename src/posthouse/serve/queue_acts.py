"""Acts on the queue while the server runs: each goes to the worker that holds the message."""

import asyncio
from typing import Any

from posthouse.mail.envelope import parse_queue_id, shard_of
from posthouse.serve.answering import ControlRefusal, Undecided
from posthouse.serve.channel import ChannelClosed, ChannelRefusal
from posthouse.serve.fleet import Fleet, Worker

ACTS = frozenset({"queue-hold", "queue-release", "queue-retry", "queue-reroute", "queue-bounce", "queue-delete"})
"""The verbs. With `ids` (queue ids as people see them) an act is for those, else, by its other arguments, for all workers."""

_SECONDS = 300.0


async def act_on_queue(fleet: Fleet, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Has the workers carry it out and joins their answers: lists and numbers are added. ControlRefusal, Undecided."""
    if verb not in ACTS:
        raise ControlRefusal(f"this server knows no {verb}; is it older than the command?")
    others = {name: value for name, value in arguments.items() if name != "ids"}
    shares = _shares(fleet, arguments["ids"]) if "ids" in arguments else [(worker, None) for worker in fleet.workers]
    asking = [
        worker.ask(verb, timeout=_SECONDS, **others, **({} if ids is None else {"ids": ids})) for worker, ids in shares
    ]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    joined: dict[str, Any] = {}
    for answer in answers:
        if isinstance(answer, ChannelRefusal):
            raise ControlRefusal(str(answer)) from answer
        if isinstance(answer, ChannelClosed | TimeoutError):
            raise Undecided(str(answer) or f"a worker did not answer {verb} in time") from answer
        if isinstance(answer, BaseException):
            raise answer
        for name, value in answer.items():
            joined[name] = joined[name] + value if name in joined else value
    return joined


def _shares(fleet: Fleet, ids: list[str]) -> list[tuple[Worker, list[str] | None]]:
    by_worker: dict[int, list[str]] = {}
    for text in ids:
        try:
            worker = fleet.worker_for(shard_of(parse_queue_id(text)))
        except ValueError as error:
            raise ControlRefusal(f"{text!r} is not a queue id") from error
        by_worker.setdefault(worker.index, []).append(text)
    return [(fleet.workers[index], share) for index, share in by_worker.items()]
