"""One configuration as read: the files for their lines, postconf(1) for what is in force, and the services in it."""

import socket
from pathlib import Path

from posthouse.audit.finding import existing
from posthouse.audit.postfix.defaults import DEFAULTS
from posthouse.audit.postfix.door import Door, doors
from posthouse.audit.postfix.master import Override, Service, read_master
from posthouse.audit.postfix.opening import Tables
from posthouse.audit.postfix.postconf import Effective, ask_postconf
from posthouse.audit.postfix.settings import Settings, read_main
from posthouse.audit.postfix.smtpd import Smtpd


class Configuration:
    """main.cf, master.cf and the tables that they name. `effective` is None where there is no postconf."""

    def __init__(self, main: Path, *, asks_postconf: bool = True) -> None:
        """Reads all but the tables. AuditError when a file can't be read or understood."""
        self.main = main
        explicit = read_main(main)
        self.effective: Effective | None = ask_postconf(main.parent) if asks_postconf else None
        defaults = {"mynetworks": "", **_of_this_machine(), **DEFAULTS}
        if self.effective is not None:
            defaults |= self.effective.parameters
        self.settings = Settings(main, explicit, defaults)
        services = read_master(existing(main.with_name("master.cf")))
        self.services = [_as_in_force(service, self.effective) for service in services]
        self._types = self.effective.types if self.effective is not None else frozenset()
        self.tables = Tables(self.settings, self._types, is_at_home=self.is_at_home)

    def close_doubtful_tables(self) -> None:
        """From now on a table whose type may not be there is one that Postfix can't open."""
        self.tables = Tables(self.settings, self._types, is_at_home=self.is_at_home, opens_doubtful=False)

    def doors(self) -> list[Door]:
        """The smtpd services that listen on the network."""
        return doors(self.services, self.settings)

    def smtpd(self, door: Door) -> Smtpd:
        """The service behind a door."""
        return Smtpd(door.service, self.settings, self.services, self.tables)

    @property
    def is_at_home(self) -> bool:
        """Whether it is the configuration that this machine's Postfix runs with."""
        return self.effective is not None and str(self.main.parent) == self.effective.directory


def _as_in_force(service: Service, effective: Effective | None) -> Service:
    """The service with the values of its overrides as postconf reads them; the lines stay ours."""
    if effective is None:
        return service
    overrides = dict(service.overrides)
    for (name, kind, parameter), value in effective.overrides.items():
        if (name, kind) == (service.name, service.kind):
            place = overrides[parameter].place if parameter in overrides else service.place
            overrides[parameter] = Override(value, place)
    return Service(service.name, service.kind, service.command, overrides, service.place)


def _of_this_machine() -> dict[str, str]:
    """What Postfix computes from the machine, where postconf can't be asked."""
    name = socket.gethostname() or "localhost"
    full = name if "." in name else f"{name}.localdomain"
    return {"myhostname": full, "mydomain": full.partition(".")[2]}
