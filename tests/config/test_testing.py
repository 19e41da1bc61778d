"""[collector], [tester] and the bounds of a lab: what they mean, and what each mistake is answered."""

from pathlib import Path

import pytest

from posthouse.config import ConfigError, ListenerRole, find_exposed, load_text


def load(text: str):  # type: ignore[no-untyped-def]
    return load_text(text, Path("/etc/posthouse/posthouse.toml"))


def test_testers_key_that_everybody_can_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 32)
    config = load_text('[tester]\nkey_file = "key"\n', tmp_path / "posthouse.toml")
    (tmp_path / "key").chmod(0o644)
    assert "can be read by every user" in find_exposed(config)[0]
    (tmp_path / "key").chmod(0o600)
    assert find_exposed(config) == []


def lab(inside: str, address: str = "127.0.0.1:2526") -> str:
    return f'[[listener]]\naddress = "{address}"\nrole = "lab"\nlab = {{ {inside} }}\n'


def test_everything_of_the_relay_test_is_read() -> None:
    config = load(
        lab('destinations = "collector.example.net", until = 2026-08-01')
        + lab(
            'destinations = [".example.net"], until = 2026-08-01T18:00:00+02:00, networks = ["192.0.2.0/24"]',
            "0.0.0.0:2527",
        )
        + """
[[listener]]
address = "0.0.0.0:25"
role = "collector"
[collector]
domains = ["collector.example.net", "Bücher.example"]
keep = "7d"
ask = "[::1]:8026"
[tester]
collector = "collector.example.org"
collector_url = "https://collector.example.org/ask/"
key_file = "key"
own_networks = ["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32"]
do_not_test = ["203.0.113.0/24", "2001:db8::1", "example.org", ".example.org"]
"""
    )
    first, second, third = config.listeners
    assert (first.role, first.lab.networks, first.lab.until) == (ListenerRole.LAB, ("127.0.0.0/8", "::1"), 1785542400.0)
    assert (second.lab.networks, second.lab.destinations) == (("192.0.2.0/24",), (".example.net",))
    assert second.lab.until == 1785542400.0 + 16 * 3600
    assert (third.role, third.lab) == (ListenerRole.COLLECTOR, None)
    assert config.collector.domains == ("collector.example.net", "xn--bcher-kva.example")
    assert (config.collector.keep, config.collector.ask_host, config.collector.ask_port) == (7 * 86400, "::1", 8026)
    assert config.tester.key_file == Path("/etc/posthouse/key")
    assert config.tester.do_not_test == ("203.0.113.0/24", "2001:db8::1", "example.org", ".example.org")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[collector]\n", r"\[collector\] needs the key domains"),
        ("[collector]\ndomains = []\n", "is empty"),
        ('[collector]\ndomains = ["[192.0.2.1]"]\n', "address literal"),
        ('[tester]\nown_networks = ["0.0.0.0/0"]\n', "65,536 public addresses"),
        ('[tester]\nown_networks = ["8.8.0.0/16", "9.9.9.9"]\n', "65,536 public addresses"),
        ('[tester]\nown_networks = ["2000::/3"]\n', "wider than a /32"),
        ('[tester]\nown_networks = ["::/0"]\n', "wider than a /32"),
        ('[tester]\ncollector_url = "http://a.test"\n', "needs `collector`"),
        ('[tester]\ncollector = "a.test"\ncollector_url = "ftp://a.test"\n', "not a URL"),
        ('[tester]\ncollector = "a.test"\ncollector_url = "http://a.test:99999"\n', "not a URL"),
        ('[tester]\ndo_not_test = ["not a host"]\n', "not a domain"),
        ('[tester]\ndo_not_test = ["10.0.0.1/8"]\n', "host bits"),
        ("[tester]\ntests_per_target = 100000\n", "between 1 and 1000"),
        ("[tester]\nanyone = true\n", "has no key anyone"),
        ('[[listener]]\naddress = "127.0.0.1:25"\nrole = "collector"\n', r":3: .*\[collector\] domains"),
        ('[[listener]]\naddress = "127.0.0.1:25"\nrole = "trap"\n', "not built yet"),
        (lab('destinations = ["a.test"], until = 2026-08-01', "192.0.2.1:25"), "name who may use it"),
        (lab('destinations = ["a.test"], until = 2026-08-01, networks = ["192.0.0.0/16"]'), "too wide for a lab"),
        (lab('destinations = ["a.test"], until = 2026-08-01, forever = true'), r"\[\[listener\]\] lab has no key"),
        (lab('destinations = ["a.test"], until = 12:00:00'), "must be a date"),
    ],
)
def test_mistake_is_named_with_its_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(text)
