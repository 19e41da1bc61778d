"""TOML to settings. Unknown keys, wrong types and contradictions are errors that name the key, the line and the remedy.

Rooms never import this; `serve.wiring` turns a Config into their values. `settings` holds the values, `keys` every key with
its words for the documentation, `load` reads them, `consistency` is what no single key can tell.
"""

from posthouse.config.consistency import check_consistency, find_warnings
from posthouse.config.error import ConfigError
from posthouse.config.load import default_config, load_config, load_text
from posthouse.config.search import find_config, find_data_dir
from posthouse.config.settings import (
    Config,
    HistorySettings,
    LimitSettings,
    LineEndings,
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
    TlsSettings,
)
from posthouse.config.side_files import check_files, read_password, read_recipients

__all__ = [
    "Config",
    "ConfigError",
    "HistorySettings",
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
    "TlsSettings",
    "check_consistency",
    "check_files",
    "default_config",
    "find_config",
    "find_data_dir",
    "find_warnings",
    "load_config",
    "load_text",
    "read_password",
    "read_recipients",
]
