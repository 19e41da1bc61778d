"""From a Config to the rooms' values: rules, routes, plans for listeners, transports. The one place that knows every scheme."""

import random
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import msgspec

from posthouse.config import Config, ConfigError, LineEndings, ListenerRole, ListenerSettings, ProxyUse, read_password, read_recipients
from posthouse.dns.mx import Ourselves
from posthouse.dns.resolver import Resolver
from posthouse.net.server import Handler, ListenerPlan, ServerProtocol, Timeouts
from posthouse.net.tls import TlsError, server_context
from posthouse.policy.facts import Role
from posthouse.policy.networks import NetworkSet
from posthouse.policy.rules import Rules, RulesError, compile_rules
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.intake import Intake
from posthouse.relay.route import Hop, HopKind, Login, NextHop, Route, RouteError, RouteTable, TlsUse, parse_hop
from posthouse.relay.session import Desk, Session, Verify
from posthouse.smtp.server import ServerConnection, ServerSettings
from posthouse.spool.api import Clock
from posthouse.transports.api import Transport
from posthouse.transports.maildir import MaildirTransport
from posthouse.transports.pipe import PipeTransport
from posthouse.transports.smtp import SmtpTransport, TlsMode

SUBMIT = "submit"
"""The name of the local socket where listeners are named."""
