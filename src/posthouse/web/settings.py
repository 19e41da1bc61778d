"""How the service is set up; `serve` fills this from the configuration."""

import msgspec

SUBMISSION_PORTS = (25, 465, 587, 2525)


class WebSettings(msgspec.Struct, frozen=True):
    """The service as its operator wants it.

    `name` is the host name of the service, `hello_name` what its tester says in EHLO, `contact` who answers for it. `ports`
    of a host are tested. `proxies` are networks whose X-Forwarded-For is believed. `at_once` tests run, `queue` more may
    wait; an address may be tested `per_address` times an hour, all together `in_all`. A result is kept for `keep` seconds.
    `url` is where the world finds the service ("https://relaytest.example.net"), "" when each request's own Host is good
    enough. `call_port` is that of bare calls, 0 for none; `has_collector`: a verdict rests on what arrives.
    """

    name: str
    hello_name: str = ""
    contact: str = ""
    url: str = ""
    version: str = ""
    ports: tuple[int, ...] = SUBMISSION_PORTS
    proxies: tuple[str, ...] = ()
    at_once: int = 20
    queue: int = 200
    per_address: int = 10
    in_all: int = 600
    keep: float = 7 * 86400.0
    call_port: int = 0
    has_collector: bool = False
