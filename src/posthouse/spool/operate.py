"""Acts on a queue that no server runs: each shard is locked, changed and let go."""

import os
from collections.abc import Sequence
from pathlib import Path

from posthouse.mail.envelope import shard_of
from posthouse.spool.api import Verb
from posthouse.spool.sqlite import SqliteSpool


def act_without_server(
    data_dir: Path, verb: Verb, queue_ids: Sequence[int], *, destination: str | None = None, next_hop: str = ""
) -> list[int]:
    """Does it and returns the ids of the messages that changed. SpoolLocked when a server runs after all, other SpoolErrors.

    A message to be bounced is only marked: the next server to start returns it to its sender.
    """
    changed: list[int] = []
    for shard in sorted({shard_of(queue_id) for queue_id in queue_ids}):
        directory = data_dir / "spool" / str(shard)
        if not directory.is_dir():
            continue
        mine = [queue_id for queue_id in queue_ids if shard_of(queue_id) == shard]
        spool = SqliteSpool(directory, shard)
        try:
            changed += spool.act(verb, mine, destination, next_hop)
        finally:
            spool.close()
    return changed


def become_owner(data_dir: Path) -> None:
    """Root acts as the directory's owner, so that no file in it becomes root's. Nothing for others."""
    if os.geteuid() != 0 or not data_dir.exists():
        return
    owner = data_dir.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
