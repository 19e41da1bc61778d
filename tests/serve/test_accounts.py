"""Logins: kept with argon2id, verified off the loop, and guessed in vain."""

import asyncio
import stat
import threading
import time

import pytest

from posthouse.relay.session import Verified
from posthouse.serve import accounts as module
from posthouse.serve.account_file import AccountError, AccountExists, AccountFile, AccountMissing
from posthouse.serve.accounts import AccountStore

RIGHT, WRONG = Verified(is_right=True), Verified(is_right=False)


@pytest.fixture
def file(tmp_path):
    file = AccountFile(tmp_path / "accounts")
    file.add("jane@example.org", "correct horse")
    return file


def ask(store, *tries):
    async def ask_all():
        return [await store.verify(*one) for one in tries]

    try:
        return asyncio.run(ask_all())
    finally:
        store.close()


def test_the_file_holds_hashes_and_is_ours_alone(file):
    text = file.path.read_text()
    assert "jane@example.org:$argon2id$v=19$m=19456,t=2,p=1$" in text
    assert "horse" not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_only_the_right_password_of_a_known_login_is_right(file):
    store = AccountStore(file.path)
    assert ask(
        store,
        ("jane@example.org", "correct horse", "192.0.2.1"),
        ("Jane@Example.ORG", "correct horse", "192.0.2.1"),
        ("jane@example.org", "Correct horse", "192.0.2.1"),
        ("jane@example.org", "", "192.0.2.1"),
        ("nobody", "correct horse", "192.0.2.1"),
        ("", "", ""),
        ("jane@example.org", "x" * 5000, "192.0.2.1"),
    ) == [RIGHT, RIGHT, WRONG, WRONG, WRONG, WRONG, WRONG]


def test_without_a_file_nobody_may_log_in(tmp_path):
    assert ask(AccountStore(tmp_path / "none"), ("jane", "correct horse", "")) == [WRONG]


def test_a_change_counts_from_the_next_login_on(file):
    store = AccountStore(file.path)

    async def change():
        assert await store.verify("jane@example.org", "correct horse", "") == RIGHT
        file.set_password("jane@example.org", "battery staple")
        assert await store.verify("jane@example.org", "correct horse", "") == WRONG
        assert await store.verify("jane@example.org", "battery staple", "") == RIGHT
        file.remove("jane@example.org")
        assert await store.verify("jane@example.org", "battery staple", "") == WRONG

    asyncio.run(change())
    store.close()


def test_failures_from_one_address_are_counted_and_hold_up_that_address_alone(file):
    now = [1000.0]
    store = AccountStore(file.path, clock=lambda: now[0])

    async def guess():
        for _ in range(10):
            assert await store.verify("jane@example.org", "a guess", "192.0.2.1") == WRONG
        held = await store.verify("jane@example.org", "correct horse", "192.0.2.1")
        assert not held.is_right
        assert held.retry_after == pytest.approx(60)
        assert await store.verify("jane@example.org", "correct horse", "192.0.2.2") == RIGHT
        now[0] += 61
        assert await store.verify("jane@example.org", "correct horse", "192.0.2.1") == RIGHT

    asyncio.run(guess())
    store.close()


def test_an_ipv6_guesser_has_one_network_not_many_addresses(file):
    store = AccountStore(file.path, clock=lambda: 0.0)
    tries = [("jane@example.org", "a guess", f"2001:db8::{n:x}") for n in range(1, 12)]
    assert ask(store, *tries)[-1].retry_after > 0


def test_guesses_at_once_are_counted_before_any_is_hashed(file, monkeypatch):
    hashed = []
    verify = module.HASHER.verify
    monkeypatch.setattr(type(module.HASHER), "verify", lambda self, *a: hashed.append(1) or verify(*a))
    store = AccountStore(file.path, clock=lambda: 0.0)

    async def guess():
        return await asyncio.gather(*(store.verify("jane@example.org", f"guess {n}", "192.0.2.1") for n in range(40)))

    answers = asyncio.run(guess())
    store.close()
    assert len(hashed) == 10
    assert sum(answer.retry_after > 0 for answer in answers) == 30


def test_a_right_login_is_not_hashed_again_for_a_while(file, monkeypatch):
    now = [0.0]
    store = AccountStore(file.path, clock=lambda: now[0])
    hashed = []
    verify = module.HASHER.verify
    monkeypatch.setattr(type(module.HASHER), "verify", lambda self, *a: hashed.append(1) or verify(*a))

    async def log_in():
        for _ in range(5):
            assert await store.verify("jane@example.org", "correct horse", "") == RIGHT
        assert len(hashed) == 1
        now[0] += 31
        assert await store.verify("jane@example.org", "correct horse", "") == RIGHT
        assert len(hashed) == 2

    asyncio.run(log_in())
    store.close()


def test_the_loop_goes_on_while_passwords_are_hashed_and_only_two_are_at_a_time(file, monkeypatch):
    running, most, lock = [0], [0], threading.Lock()

    def slow_verify(self, *_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return True

    monkeypatch.setattr(type(module.HASHER), "verify", slow_verify)
    store = AccountStore(file.path)

    async def log_in():
        ticks = 0
        waiting = [asyncio.ensure_future(store.verify("jane@example.org", f"p{n}", f"10.0.0.{n}")) for n in range(8)]
        while not all(one.done() for one in waiting):
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(log_in()) > 10
    store.close()
    assert most[0] == 2


def test_a_login_that_does_not_exist_is_hashed_like_one_that_does(file, monkeypatch):
    hashed = []
    verify = module.HASHER.verify
    monkeypatch.setattr(type(module.HASHER), "verify", lambda self, *a: hashed.append(a[0]) or verify(*a))
    ask(AccountStore(file.path), ("nobody", "correct horse", ""))
    assert len(hashed) == 1
    assert hashed[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_damaged_file_defers_logins(file):
    file.path.write_text("jane: plain text\n")
    (answer,) = ask(AccountStore(file.path), ("jane", "plain text", ""))
    assert not answer.is_right
    assert answer.unavailable
    assert not answer.retry_after


def test_accounts_are_added_changed_and_removed_once(file):
    with pytest.raises(AccountExists, match="already"):
        file.add("JANE@example.org", "correct horse")
    with pytest.raises(AccountMissing, match="no account bob"):
        file.set_password("bob", "correct horse")
    with pytest.raises(AccountMissing):
        file.remove("bob")
    file.add("bob", "correct horse")
    assert sorted(file.read()) == ["bob", "jane@example.org"]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", ".a", "#a", "x" * 129])
def test_a_name_that_would_harm_the_file_is_refused(file, name):
    with pytest.raises(AccountError, match="can't be a login"):
        file.add(name, "correct horse")


@pytest.mark.parametrize(
    ("password", "words"), [("short", "shorter than 8"), ("tab\tinside it", "control"), ("x" * 1025, "1024")]
)
def test_a_password_that_protects_nothing_is_refused(file, password, words):
    with pytest.raises(AccountError, match=words):
        file.add("bob", password)


def test_two_writers_at_once_lose_nothing(file):
    threads = [threading.Thread(target=file.add, args=(f"user{n}", "correct horse")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read()) == 7
