"""From TOML to a Config: the file, its sections one by one, then what they say together."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from posthouse.config import values
from posthouse.config.aliases import read_aliases
from posthouse.config.consistency import check_consistency
from posthouse.config.error import ConfigError
from posthouse.config.keys import LATER_ROLES
from posthouse.config.places import find_places
from posthouse.config.route import read_route
from posthouse.config.search import default_data_dir, find_config, machine_name, read_text
from posthouse.config.settings import (
    Config,
    HistorySettings,
    LimitSettings,
    ListenerRole,
    ListenerSettings,
    LogSettings,
    MetricsSettings,
    ProxyUse,
    RelaySettings,
    ResolverSettings,
    RetrySettings,
    RouteSettings,
    TlsSettings,
)
from posthouse.config.table import Document, Table
from posthouse.config.testing import read_collector, read_lab, read_tester, read_web
from posthouse.config.watch import read_watch
from posthouse.smtp.content import LineEndings

DEFAULT_LISTENER = ListenerSettings(host="127.0.0.1", port=2525)
DEFAULT_ROUTE = RouteSettings(domain=("*",), to=("mx:",))

_TOML_PLACE = re.compile(r"^(.*) \(at (?:line (\d+), column \d+|end of document)\)$", re.DOTALL)


def load_config(path: Path | None = None) -> Config:
    """The configuration of `path`, or of the usual places when None. Reads that one file and nothing else. ConfigError when unusable."""
    found = find_config(path)
    if found is None:
        return default_config()
    return load_text(read_text(found), found)


def default_config() -> Config:
    """The embedded default: this machine relays for itself alone, on an unprivileged port."""
    return Config(
        hostname=machine_name(),
        data_dir=default_data_dir(None),
        workers=_cores(),
        listeners=(DEFAULT_LISTENER,),
        routes=(DEFAULT_ROUTE,),
        accounts=default_data_dir(None) / "accounts",
    )


def load_text(toml: str, source: Path) -> Config:
    """The configuration in a text; `source` names it in messages and is what relative paths are relative to."""
    toml = toml.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        parsed = tomllib.loads(toml)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise toml_fault(source, toml, error) from None
    document = Document(str(source), source.absolute().parent, find_places(toml))
    config = _read(document, Table(document, "", (), parsed), source)
    check_consistency(config, document)
    return config


def toml_fault(source: Path, toml: str, error: Exception) -> ConfigError:
    """The error for what tomllib could not read, in plainer words and with the line."""
    if isinstance(error, RecursionError):
        return ConfigError(f"{source} is nested too deeply")
    match = _TOML_PLACE.match(str(error))
    line = match[2] if match and match[2] else len(toml.rstrip().splitlines())
    sentence = match[1] if match else str(error)
    section = re.fullmatch(r"Cannot declare \((.*?),?\) twice", sentence)
    if section:
        title = section[1].replace("'", "").replace(", ", ".")
        return ConfigError(f"{source}:{line}: there is a section [{title}] above already; write its keys there, once")
    if sentence in ("Cannot overwrite a value", "Cannot mutate immutable namespace") or "twice" in sentence:
        sentence = f"a key or section is given twice ({sentence})"
    return ConfigError(f"{source}:{line}: {sentence}; this is not TOML as it must be")


def _read(document: Document, top: Table, source: Path) -> Config:
    data_dir = top.take("data_dir", values.path_in(document.directory), default_data_dir(source))
    listeners = tuple(_listener(table, document.directory) for table in top.tables("listener", "listener"))
    routes = tuple(read_route(table, document.directory) for table in top.tables("route", "route"))
    if not any("*" in route.domain for route in routes):
        routes = (*routes, DEFAULT_ROUTE)
    return Config(
        hostname=top.take("hostname", values.host_name, None) or machine_name(),
        data_dir=data_dir,
        workers=top.take("workers", values.whole(1, 256), None) or _cores(),
        source=source.absolute(),
        postmaster=top.take("postmaster", values.mail_address, ""),
        listeners=listeners or (DEFAULT_LISTENER,),
        relay=_relay(top.table("relay", "relay"), document.directory),
        aliases=top.take("aliases", read_aliases, ()),
        routes=routes,
        limits=_limits(top.table("limits", "limits")),
        retry=_retry(top.table("retry", "retry")),
        resolver=_resolver(top.table("resolver", "resolver")),
        history=_history(top.table("history", "history")),
        log=_log(top.table("log", "log")),
        metrics=_metrics(top.table("metrics", "metrics")),
        collector=read_collector(top.table("collector", "collector")),
        tester=read_tester(top.table("tester", "tester"), document.directory),
        web=read_web(top.table("web", "web")),
        watch=read_watch(top.table("watch", "watch")),
        accounts=top.take("accounts", values.path_in(document.directory), data_dir / "accounts"),
        user=top.take("user", values.text, ""),
    )


def _role(value: object) -> ListenerRole:
    if value in LATER_ROLES:
        raise ValueError(f"is {value!r}, which is known but not built yet in this version")
    return values.one_of(ListenerRole)(value)


def _listener(table: Table, directory: Path) -> ListenerSettings:
    host, port = table.need("address", values.endpoint(least_port=0))
    proxy = table.take("proxy", values.one_of(ProxyUse), ProxyUse.OFF)
    proxies = table.take("proxies", values.list_of(values.network), ())
    if proxy is ProxyUse.REQUIRED and not proxies:
        raise table.fault("proxy", 'is "required", but `proxies` names nobody who may send a PROXY header')
    if proxies and proxy is ProxyUse.OFF:
        raise table.fault("proxies", 'counts only with proxy = "required"')
    tls = table.table("tls", "listener.tls")
    role = table.take("role", _role, ListenerRole.RELAY)
    if role in (ListenerRole.LAB, ListenerRole.COLLECTOR) and proxy is ProxyUse.REQUIRED:
        raise table.fault("proxy", f'does not go with role = "{role}": it must see whom it talks to')
    return ListenerSettings(
        host=host,
        port=port,
        role=role,
        tls=_tls(tls, directory) if tls else None,
        proxy=proxy,
        proxies=proxies,
        line_endings=table.take("line_endings", values.one_of(LineEndings), LineEndings.STRICT),
        lab=read_lab(table.table("lab", "listener.lab"), table, role, host),
    )


def _tls(table: Table, directory: Path) -> TlsSettings:
    return TlsSettings(
        certificate=table.need("certificate", values.path_in(directory)),
        key=table.need("key", values.path_in(directory)),
        implicit=table.take("implicit", values.boolean, False),
    )


def _relay(table: Table | None, directory: Path) -> RelaySettings:
    default = RelaySettings()
    if table is None:
        return default
    domains = values.list_of(values.domain_pattern)
    addresses = values.list_of(values.ip_address)
    return RelaySettings(
        local_domains=table.take("local_domains", domains, ()),
        relay_domains=table.take("relay_domains", domains, ()),
        trusted_networks=table.take("trusted_networks", values.list_of(values.network), default.trusted_networks),
        gateways_as_strangers=table.take("gateways_as_strangers", addresses, ()),
        gateways_trusted=table.take("gateways_trusted", addresses, ()),
        recipients=table.take("recipients", values.path_in(directory), None),
    )


def _limits(table: Table | None) -> LimitSettings:
    default = LimitSettings()
    if table is None:
        return default
    kinds: dict[str, values.Kind[Any]] = {
        "message_size": values.size,
        "header_size": values.size,
        "recipients_stranger": values.whole(1),
        "recipients_trusted": values.whole(1),
        "hops": values.whole(1, 1000),
        "connections": values.whole(1),
        "connections_per_client": values.whole(1),
        "session_messages": values.whole(1),
        "errors_slow": values.whole(1),
        "errors_close": values.whole(1),
        "command_timeout": values.duration,
        "content_timeout": values.duration,
        "minimum_rate": values.whole(0),
        "free_space": values.size,
    }
    return LimitSettings(**{key: table.take(key, kind, getattr(default, key)) for key, kind in kinds.items()})


def _retry(table: Table | None) -> RetrySettings:
    default = RetrySettings()
    if table is None:
        return default
    found = RetrySettings(
        first=table.take("first", values.duration, default.first),
        longest=table.take("longest", values.duration, max(default.longest, table.take("first", values.duration, 0))),
        factor=table.take("factor", values.number(1, 100), default.factor),
        give_up=table.take("give_up", values.duration, default.give_up),
        delay_notice=table.take("delay_notice", values.duration, default.delay_notice),
    )
    if found.longest < found.first:
        raise table.fault("longest", "is shorter than `first`")
    return found


def _resolver(table: Table | None) -> ResolverSettings:
    default = ResolverSettings()
    if table is None:
        return default
    return ResolverSettings(
        servers=table.take("servers", values.list_of(values.endpoint(default_port=53)), ()),
        timeout=table.take("timeout", values.duration, default.timeout),
    )


def _history(table: Table | None) -> HistorySettings:
    default = HistorySettings()
    if table is None:
        return default
    return HistorySettings(
        days=table.take("days", values.whole(1, 3650), default.days),
        size=table.take("size", values.size, default.size),
    )


def _log(table: Table | None) -> LogSettings:
    default = LogSettings()
    if table is None:
        return default
    return LogSettings(
        format=table.take("format", values.word_of("auto", "text", "json"), default.format),
        level=table.take("level", values.word_of("debug", "info", "warning", "error"), default.level),
    )


def _metrics(table: Table | None) -> MetricsSettings:
    if table is None:
        return MetricsSettings()
    host, port = table.need("listen", values.endpoint(least_port=0))
    return MetricsSettings(host=host, port=port)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
