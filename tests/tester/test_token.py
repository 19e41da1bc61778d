"""Tokens: signed, short, bound to a purpose and to what they are about."""

import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posthouse.tester.token import (
    TOKEN_LENGTH,
    KeyFault,
    Purpose,
    Token,
    TokenFault,
    TokenKey,
    load_key,
    make_key,
    mint,
    new_key,
    new_test_id,
    read_token,
    tokens_in,
    verify,
)

NOW = 1_790_000_000.0
KEY = TokenKey(b"k" * 32)
TOKEN = Token(Purpose.PROBE, 0x123456789A, 41, NOW + 3600)


def test_token_says_what_it_was_minted_with() -> None:
    found = verify(KEY, mint(KEY, TOKEN), NOW, Purpose.PROBE)
    assert isinstance(found, Token)
    assert (found.test_id, found.case_number) == (TOKEN.test_id, 41)
    assert 0 <= found.expires_at - TOKEN.expires_at < 60


def test_token_fits_into_local_part_and_label() -> None:
    text = mint(KEY, TOKEN)
    assert len(text) == TOKEN_LENGTH
    assert set(text) <= set(string.ascii_lowercase + "234567")


def test_case_of_the_letters_does_not_matter() -> None:
    assert isinstance(verify(KEY, mint(KEY, TOKEN).upper(), NOW, Purpose.PROBE), Token)


def test_any_changed_character_is_forged_or_malformed() -> None:
    text = mint(KEY, TOKEN)
    for place, letter in enumerate(text):
        for other in "a7z0-":
            if other != letter:
                changed = text[:place] + other + text[place + 1 :]
                assert isinstance(verify(KEY, changed, NOW, Purpose.PROBE), TokenFault)


@pytest.mark.parametrize("text", ["", "a", "é" * TOKEN_LENGTH, "1" * TOKEN_LENGTH, "a" * 40, "\0" * 32, "=" * 32])
def test_what_is_no_token_is_malformed(text: str) -> None:
    assert verify(KEY, text, NOW, Purpose.PROBE) is TokenFault.MALFORMED


def test_token_of_another_key_or_purpose_or_host_is_forged() -> None:
    text = mint(KEY, TOKEN, about="mx.example.org")
    assert verify(new_key(), text, NOW, Purpose.PROBE, "mx.example.org") is TokenFault.FORGED
    assert verify(KEY, text, NOW, Purpose.BOUNCE, "mx.example.org") is TokenFault.FORGED
    assert verify(KEY, text, NOW, Purpose.PROBE, "mx.example.net") is TokenFault.FORGED
    assert isinstance(verify(KEY, text, NOW, Purpose.PROBE, "MX.example.org"), Token)


def test_token_expires_and_can_still_be_read() -> None:
    text = mint(KEY, TOKEN)
    assert verify(KEY, text, NOW + 3700, Purpose.PROBE) is TokenFault.EXPIRED
    assert isinstance(read_token(KEY, text), Token)


def test_numbers_that_do_not_fit_are_refused() -> None:
    for bad in (
        Token(Purpose.PROBE, 2**40, 1, NOW),
        Token(Purpose.PROBE, 1, 4096, NOW),
        Token(Purpose.PROBE, 1, 1, 1e12),
    ):
        with pytest.raises(ValueError, match="token"):
            mint(KEY, bad)


def test_tokens_are_found_amid_routing_tricks() -> None:
    text = mint(KEY, TOKEN)
    for around in ("{}%collector.example.net", "a!{}", '"{}@b"', "{}+detail", "220 mx ESMTP {}", "v={}; x", "{}"):
        assert tokens_in(around.format(text.upper())) == (text,)
    assert tokens_in("x" + text) == ()


def test_test_ids_differ() -> None:
    assert len({new_test_id() for _ in range(100)}) == 100


def test_key_is_made_once_however_many_ask(tmp_path: Path) -> None:
    place = tmp_path / "tester" / "key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: make_key(place).secret, range(16)))
    assert len(keys) == 1
    assert load_key(place).secret in keys
    assert place.stat().st_mode & 0o077 == 0
    assert [one.name for one in place.parent.iterdir()] == ["key"]


def test_unusable_key_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyFault, match="can't read"):
        load_key(tmp_path / "none")
    (tmp_path / "short").write_text("secret\n")
    with pytest.raises(KeyFault, match="at least 16"):
        load_key(tmp_path / "short")


def test_key_does_not_show_its_secret() -> None:
    assert "kkkk" not in repr(KEY)
