"""A damaged database is salvaged, whatever happens meanwhile, and verify tells what is not as it should be."""

import asyncio
from pathlib import Path

import pytest

from posthouse.spool import salvage as salvage_module
from posthouse.spool.api import SpoolDamaged, SpoolError
from posthouse.spool.clock import wall_clock
from posthouse.spool.sqlite import SqliteSpool
from posthouse.spool.verify import verify
from spooling import SMALL, accept, accept_many, envelope, message, relayed, sqlite_spool

SHARD = Path("spool", "1")


def _fill(data: Path) -> list[int]:
    """Forty messages of an hour ago, some large, some settled; what is left of them."""
    then = wall_clock() - 3_600_000

    async def scene() -> list[int]:
        with sqlite_spool(data / SHARD, clock=lambda: then) as spool:
            ids = list(await accept_many(spool, 38))
            for size in (20_000, 30_000):
                ids.append(spool.new_queue_id())
                await accept(spool, (envelope(ids[-1]), message(b"x" * size)))
            spool.record([relayed(i) for i in ids[:4]])
            spool.flush()
            return ids[4:]

    return asyncio.run(scene())


def _damage(data: Path) -> None:
    """A page of messages."""
    database = data / SHARD / "queue.db"
    octets = bytearray(database.read_bytes())
    at = next(at for at in range(4096, len(octets), 4096) if octets[at] == 13)  # a leaf of a table
    octets[at : at + 4096] = b"\xa5" * 4096
    database.write_bytes(octets)


def _open(data: Path) -> set[int]:
    """Opens it as a server does, once more where the first look finds the damage."""

    async def scene() -> set[int]:
        with sqlite_spool(data / SHARD) as spool:
            found = {w.queue_id for w in spool.due("example.net", 1 << 60, 1000)}
            for queue_id in found:
                spool.load(queue_id)
            return found

    try:
        return asyncio.run(scene())
    except SpoolDamaged:
        return asyncio.run(scene())


def test_sound_queue_is_found_sound_with_and_without_a_server(tmp_path):
    ids = _fill(tmp_path)
    found = verify(tmp_path)
    assert (found.messages, found.damages) == (len(ids), [])

    async def scene():
        with sqlite_spool(tmp_path / SHARD) as spool:
            await accept_many(spool, 3)
            assert verify(tmp_path).damages == []

    asyncio.run(scene())


def test_damaged_database_is_salvaged_and_the_rest_flows(tmp_path):
    ids = _fill(tmp_path)
    _damage(tmp_path)
    assert verify(tmp_path).damages
    kept = _open(tmp_path)
    assert kept < set(ids)
    assert len(kept) > len(ids) // 2
    (told,) = salvage_module.reports(tmp_path / SHARD)
    assert set(told[1].lost) == set(ids) - kept
    assert {d.queue_id for d in verify(tmp_path).damages} == {0, *told[1].lost}
    assert _open(tmp_path) == kept
    for path in (tmp_path / SHARD).glob("damaged-*"):
        path.unlink()
    assert {d.queue_id for d in verify(tmp_path).damages} == set(told[1].lost)  # the history does not forget them


@pytest.mark.parametrize("step", range(1, 4))
def test_salvage_that_dies_at_any_step_is_ended_by_the_next_start(tmp_path, monkeypatch, step):
    ids = _fill(tmp_path)
    _damage(tmp_path)
    (tmp_path / SHARD / "damaged").touch()
    real, count = Path.rename, 0

    def rename(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == step:
            raise OSError(5, "dies here")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises((SpoolError, OSError)):
            _open(tmp_path)
    kept = _open(tmp_path)
    assert len(kept) > len(ids) // 2
    assert {d.queue_id for d in verify(tmp_path).damages} - {0} == set(ids) - kept
    assert not (tmp_path / SHARD / "damaged").exists()
    assert list((tmp_path / SHARD).glob("salvage*")) == []


def test_command_does_not_salvage(tmp_path):
    _fill(tmp_path)
    (tmp_path / SHARD / "queue.db").write_bytes(b"x" * 8192)
    with pytest.raises(SpoolDamaged):
        SqliteSpool(tmp_path / SHARD, 1, settings=SMALL)
    assert list((tmp_path / SHARD).glob("damaged*")) == []


def test_header_of_the_database_is_replaceable(tmp_path):
    ids = _fill(tmp_path)
    database = tmp_path / SHARD / "queue.db"
    octets = bytearray(database.read_bytes())
    octets[:600] = bytes(600)
    database.write_bytes(octets)
    assert _open(tmp_path) == set(ids)


@pytest.mark.parametrize(
    ("column", "value"),
    [("reverse_path", b"someone@else.example"), ("trace", b""), ("form", 5), ("envelope", "{}  12345678")],
)
def test_changed_envelope_is_noticed(tmp_path, column, value):
    (first, *_) = _fill(tmp_path)
    _change(tmp_path, f"UPDATE message SET {column}=? WHERE id=?", value, first)
    assert [d.queue_id for d in verify(tmp_path).damages] == [first]


@pytest.mark.parametrize(
    ("column", "value"),
    [("forward_path", b"two@example.net"), ("grant_kind", "local-user"), ("state", 3), ("destination", "example.org")],
)
def test_changed_recipient_is_noticed(tmp_path, column, value):
    (first, *_) = _fill(tmp_path)
    _change(tmp_path, f"UPDATE recipient SET {column}=? WHERE message=?", value, first)
    assert [d.queue_id for d in verify(tmp_path).damages] == [first]


def _change(data: Path, statement: str, *values: object) -> None:
    spool = SqliteSpool(data / SHARD, 1, settings=SMALL)
    spool._batches.connection.execute(statement, values)
    spool.close()
