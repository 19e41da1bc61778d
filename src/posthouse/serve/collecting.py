"""Listeners of role collector: their desks, and the receipts of this worker.

The tester's room knows how probes are received; this puts it together with the configuration, the key and the disk.
"""

import os
import threading
import time
from pathlib import Path

from posthouse.config import Config, ConfigError, ListenerSettings
from posthouse.net.server import ServerProtocol
from posthouse.smtp.server import ServerConnection, ServerSettings
from posthouse.tester.collector import COLLECTOR_BANNER, CollectorFault, Receipt
from posthouse.tester.receipts import RECEIPTS_FILE, ReceiptStore
from posthouse.tester.reception import MOST_RECIPIENTS, CollectorDesk, Rate, Reception
from posthouse.tester.token import KeyFault, TokenKey, load_key, make_key

KEY_FILE = Path("tester") / "key"
"""Where the testers' key is, below the data directory, unless the configuration names another."""

MESSAGE_OCTETS = 1_000_000
"""The largest probe that is taken: ours are small, and a notice about one returns it at most."""


def testers_key(config: Config) -> TokenKey:
    """The key by which tokens are signed: the one that is named, else this data directory's, made when missing. ConfigError."""
    try:
        named = config.tester.key_file
        return load_key(named) if named is not None else make_key(config.data_dir / KEY_FILE)
    except KeyFault as fault:
        raise ConfigError(str(fault)) from fault


def contact_of(config: Config) -> str:
    """Who answers for tests and for the collector."""
    return config.tester.contact or config.postmaster or f"postmaster@{config.hostname}"


class Collecting:
    """What the collector listeners of one worker share: the store, opened when the first of them needs it."""

    def __init__(self) -> None:
        self._store: ReceiptStore | None = None
        self._lock = threading.Lock()
        self._least_free = 0
        self._place = Path()

    def desk(self, config: Config, name: str) -> CollectorDesk:
        """A desk for the listener called `name`. ConfigError when there is no key, or no place for receipts."""
        settings = config.collector
        if self._store is None:
            try:
                self._store = ReceiptStore(config.data_dir / RECEIPTS_FILE, settings.keep)
            except CollectorFault as fault:
                raise ConfigError(str(fault)) from fault
        self._place, self._least_free = config.data_dir, config.limits.free_space
        return CollectorDesk(
            listener=name,
            domains=frozenset(settings.domains),
            key=testers_key(config),
            record=self._record,
            rate=Rate(settings.per_client, settings.in_all),
            contact=contact_of(config),
            clock=time.time,
        )

    def renew(self, desk: CollectorDesk, config: Config) -> None:
        """Puts a reloaded configuration in force. ConfigError, and then nothing has changed."""
        fresh = self.desk(config, desk.listener)
        desk.domains, desk.key, desk.rate, desk.contact = fresh.domains, fresh.key, fresh.rate, fresh.contact

    def close(self) -> None:
        """Nothing more is collected."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _record(self, receipts: tuple[Receipt, ...]) -> None:
        with self._lock:
            if self._store is None:
                raise CollectorFault("this server is stopping")
            place = os.statvfs(self._place)
            if place.f_bavail * place.f_frsize < self._least_free:
                raise CollectorFault(f"too little free space in {self._place}")
            self._store.record(receipts)


def make_reception(desk: CollectorDesk, protocol: ServerProtocol, settings: ServerSettings) -> Reception:
    """The handler of a connection to a collector."""
    return Reception(desk, protocol, ServerConnection(settings))


def collector_engine(config: Config, listener: ListenerSettings) -> ServerSettings:
    """What a collector offers: everything a relay may want to use, but no login and no large mail."""
    return ServerSettings(
        hostname=config.hostname,
        banner=COLLECTOR_BANNER,
        size_limit=MESSAGE_OCTETS,
        header_limit=config.limits.header_size,
        starttls=listener.tls is not None and not listener.tls.implicit,
        errors_slow=config.limits.errors_slow,
        errors_close=config.limits.errors_close,
        mail_max=config.limits.session_messages,
        rcpt_max=MOST_RECIPIENTS,
    )
