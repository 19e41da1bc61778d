"""The echo: who may speak for an address, and what a server makes of it."""

from ipaddress import ip_address

import pytest

from posthouse.smtp.command import Hello, parse_command
from posthouse.smtp.extension import Offers
from posthouse.tester.echo import Heard, has_echo, hello_name, is_nonce, judge_echo, may_vouch, new_nonce
from posthouse.tester.token import TokenKey, new_key

NOW = 1_800_000_000.0
KEY = new_key()


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "::1", "255.255.255.255"])
def test_server_that_sees_the_address_agrees(address: str) -> None:
    name = hello_name(new_nonce(KEY, NOW), address, "test.example.net")
    echo = judge_echo(KEY, name, ip_address(address), NOW)
    assert (echo.heard, echo.held, echo.seen, echo.tester) == (Heard.AGREES, address, address, "test.example.net")


def test_server_behind_nat_hears_that_it_sees_another_address() -> None:
    name = hello_name(new_nonce(KEY, NOW), "192.0.2.7", "test.example.net")
    echo = judge_echo(KEY, name, ip_address("172.17.0.1"), NOW)
    assert (echo.heard, echo.held, echo.seen) == (Heard.DIFFERS, "192.0.2.7", "172.17.0.1")


def test_mapped_address_is_the_same_address() -> None:
    name = hello_name(new_nonce(KEY, NOW), "::ffff:192.0.2.7", "test.example.net")
    assert judge_echo(KEY, name, ip_address("192.0.2.7"), NOW).heard is Heard.AGREES
    assert judge_echo(KEY, name, ip_address("::ffff:192.0.2.7"), NOW).heard is Heard.AGREES


def test_name_with_an_echo_is_a_host_name_whatever_the_case() -> None:
    name = hello_name(new_nonce(KEY, NOW), "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "test.example.net")
    assert all(len(label) <= 63 for label in name.split("."))
    command = parse_command(f"EHLO {name}".encode(), Offers(), smtputf8=False)
    assert isinstance(command, Hello)
    assert command.name == name
    assert has_echo(name)
    assert has_echo(name.upper())
    assert judge_echo(KEY, name.upper(), ip_address("2001:db8::1"), NOW).heard is Heard.DIFFERS


def test_stranger_without_a_nonce_can_say_nothing() -> None:
    name = hello_name(new_nonce(new_key(), NOW), "192.0.2.7", "test.example.net")
    assert judge_echo(KEY, name, ip_address("192.0.2.8"), NOW).heard is Heard.FORGED


def test_who_overhears_an_echo_cannot_speak_for_another_address() -> None:
    name = hello_name(new_nonce(KEY, NOW), "192.0.2.7", "test.example.net")
    other = hello_name(new_nonce(new_key(), NOW), "192.0.2.8", "test.example.net")
    nonce_id, _, rest = name.split("-", 2)
    forged = "-".join((nonce_id, other.split("-", 2)[1], rest))
    assert judge_echo(KEY, forged, ip_address("192.0.2.8"), NOW).heard is Heard.FORGED


def test_nonce_expires() -> None:
    name = hello_name(new_nonce(KEY, NOW, seconds=600), "192.0.2.7", "test.example.net")
    assert judge_echo(KEY, name, ip_address("192.0.2.8"), NOW + 600).heard is Heard.DIFFERS
    assert judge_echo(KEY, name, ip_address("192.0.2.8"), NOW + 661).heard is Heard.EXPIRED


@pytest.mark.parametrize("name", ["x.echo.y", "a-b-c.echo.d", f"{'a' * 13}-{'a' * 7}-{'a' * 16}.echo.x", "", ".echo."])
def test_junk_that_looks_like_an_echo_is_forged(name: str) -> None:
    assert judge_echo(KEY, name, ip_address("192.0.2.8"), NOW).heard is Heard.FORGED


def test_ordinary_names_carry_no_echo() -> None:
    assert not has_echo("mail.example.net")
    assert not has_echo("echo")
    assert not is_nonce("hello")


def test_what_is_no_nonce_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="posthouse relay nonce"):
        hello_name("hello", "192.0.2.7", "test.example.net")
    with pytest.raises(ValueError, match="too long"):
        hello_name(new_nonce(KEY, NOW), "192.0.2.7", "a." * 120 + "test")


@pytest.mark.parametrize(
    ("source", "target", "may"),
    [
        ("8.8.8.8", "9.9.9.9", True),
        ("10.0.0.5", "9.9.9.9", False),
        ("100.64.0.5", "9.9.9.9", False),
        ("10.0.0.5", "10.1.0.5", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("fd00::5", "2620:fe::9", False),
        ("2620:fe::fe", "fd00::1", True),
        ("", "9.9.9.9", False),
    ],
)
def test_tester_behind_its_own_nat_vouches_for_nothing(source: str, target: str, may: bool) -> None:
    assert may_vouch(source, target) is may


def test_nonces_of_one_key_differ() -> None:
    assert len({new_nonce(TokenKey(b"k" * 16), NOW) for _ in range(50)}) == 50
