"""Posthouse and a tuned Postfix, as the benchmarks start them, on an empty queue or on one that was filled before."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from load import Cost, server
from own_ends import Certificate

from peer_programs import environment, program
from peer_servers import lay_out_postfix

# Chosen for throughput on loopback; durability is untouched (Postfix syncs each queue file before its 250). It logs to a
# syslog socket that nobody reads, so logging costs it next to nothing.
TUNED_POSTFIX = {
    "myhostname": "relay.bench.test",
    "mynetworks": "127.0.0.0/8",
    "maillog_file": "",
    "in_flow_delay": "0",
    "max_use": "100000",
    "smtp_connection_cache_on_demand": "no",
    "smtpd_client_connection_rate_limit": "0",
    "receive_override_options": "no_address_mappings,no_header_body_checks,no_unknown_recipient_checks",
    "local_header_rewrite_clients": "",
    "smtputf8_enable": "no",
    "enable_original_recipient": "no",
    "qmgr_message_active_limit": "100000",
    "qmgr_message_recipient_limit": "100000",
    "default_process_limit": "200",
}


class Place(msgspec.Struct, frozen=True):
    """Where a server has its files, where it listens and where mail goes.

    `routes` are pairs of a domain and a next hop's URL (Postfix has only that of "*"); `workers` 0 means one per core;
    `certificate` is for STARTTLS, which both servers then also use towards the next hop, as they do by themselves.
    """

    directory: Path
    port: int
    sink_port: int = 0
    workers: int = 0
    certificate: Certificate | None = None
    routes: tuple[tuple[str, str], ...] = ()

    @property
    def configuration(self) -> Path:
        """Posthouse's."""
        return self.directory / "posthouse.toml"

    @property
    def data_dir(self) -> Path:
        """Posthouse's."""
        return self.directory / "data"


@contextlib.contextmanager
def fresh_directory(name: str, spool: str) -> Iterator[Path]:
    """An empty directory on the disk that is to be measured, gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f"posthouse-bench-{name}-", dir=spool))
    directory.chmod(0o755)
    os.sync()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def configure(place: Place) -> None:
    """Writes Posthouse's configuration: it runs as shipped; only where it listens and where mail goes is said."""
    tls = ""
    if place.certificate is not None:
        tls = f'tls = {{ certificate = "{place.certificate.certificate}", key = "{place.certificate.key}" }}\n'
    routes = place.routes or (("*", f"smtp://127.0.0.1:{place.sink_port}"),)
    place.configuration.write_text(
        f'hostname = "relay.bench.test"\ndata_dir = "{place.data_dir}"\n'
        + (f"workers = {place.workers}\n" if place.workers else "")
        + f'[[listener]]\naddress = "127.0.0.1:{place.port}"\n{tls}'
        + "".join(f'[[route]]\ndomain = "{domain}"\nto = ["{url}"]\n' for domain, url in routes)
    )


@contextlib.contextmanager
def posthouse(place: Place) -> Iterator[Cost]:
    """Posthouse as shipped."""
    configure(place)
    command = [sys.executable, "-m", "posthouse", "serve", "--config", str(place.configuration)]
    with server("posthouse", command, os.environ, place.directory, place.port) as cost:
        yield cost


@contextlib.contextmanager
def postfix(place: Place) -> Iterator[Cost]:
    """Postfix, tuned."""
    settings = {**TUNED_POSTFIX, "relayhost": f"[127.0.0.1]:{place.sink_port}"}
    if place.certificate is not None:
        settings |= _tls_of_postfix(place.directory, place.certificate)
    configuration = lay_out_postfix(place.directory, "127.0.0.1", place.port, settings)
    command = [program("postfix", "usr/lib/postfix/sbin/master"), "-d", "-c", str(configuration)]
    variables = {**environment("postfix"), "MAIL_CONFIG": str(configuration)}
    with server("postfix", command, variables, place.directory, place.port) as cost:
        yield cost


def _tls_of_postfix(directory: Path, certificate: Certificate) -> dict[str, str]:
    return {
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(certificate.certificate),
        "smtpd_tls_key_file": str(certificate.key),
        "smtp_tls_security_level": "may",
    }


SERVERS = {"posthouse": posthouse, "postfix": postfix}
