"""TOML to settings. Unknown keys, wrong types and contradictions are errors that name the key, the line and the remedy.

Rooms never import this; `serve.wiring` turns a Config into their values. `settings` holds the values, `keys` every key with
its words for the documentation, `load` reads them, `consistency` is what no single key can tell.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posthouse.config.consistency import check_consistency, find_warnings
    from posthouse.config.error import ConfigError
    from posthouse.config.load import default_config, load_config, load_text
    from posthouse.config.search import LocalServer, find_config, find_data_dir, find_local
    from posthouse.config.settings import (
        CollectorSettings,
        Config,
        HistorySettings,
        LabSettings,
        LimitSettings,
        ListenerRole,
        ListenerSettings,
        LoginSettings,
        LogSettings,
        MetricsSettings,
        ProxyUse,
        RelaySettings,
        ResolverSettings,
        RetrySettings,
        RouteSettings,
        TesterSettings,
        TlsSettings,
        WatchSettings,
        WebSettings,
    )
    from posthouse.config.side_files import check_files, find_exposed, read_password, read_recipients
    from posthouse.smtp.content import LineEndings

_HOMES = {
    "consistency": (
        "check_consistency",
        "find_warnings",
    ),
    "error": ("ConfigError",),
    "load": (
        "default_config",
        "load_config",
        "load_text",
    ),
    "search": (
        "LocalServer",
        "find_config",
        "find_data_dir",
        "find_local",
    ),
    "settings": (
        "CollectorSettings",
        "Config",
        "HistorySettings",
        "LabSettings",
        "LimitSettings",
        "LineEndings",
        "ListenerRole",
        "ListenerSettings",
        "LogSettings",
        "LoginSettings",
        "MetricsSettings",
        "ProxyUse",
        "RelaySettings",
        "ResolverSettings",
        "RetrySettings",
        "RouteSettings",
        "TesterSettings",
        "TlsSettings",
        "WatchSettings",
        "WebSettings",
    ),
    "side_files": (
        "check_files",
        "find_exposed",
        "read_password",
        "read_recipients",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is asked for: `sendmail` needs `search` alone, and starts in half the time without the rest."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


__all__ = [
    "CollectorSettings",
    "Config",
    "ConfigError",
    "HistorySettings",
    "LabSettings",
    "LimitSettings",
    "LineEndings",
    "ListenerRole",
    "ListenerSettings",
    "LocalServer",
    "LogSettings",
    "LoginSettings",
    "MetricsSettings",
    "ProxyUse",
    "RelaySettings",
    "ResolverSettings",
    "RetrySettings",
    "RouteSettings",
    "TesterSettings",
    "TlsSettings",
    "WatchSettings",
    "WebSettings",
    "check_consistency",
    "check_files",
    "default_config",
    "find_config",
    "find_data_dir",
    "find_exposed",
    "find_local",
    "find_warnings",
    "load_config",
    "load_text",
    "read_password",
    "read_recipients",
]
