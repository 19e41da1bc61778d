"""One smtpd(8) service: its restriction lists as tokens with places, and what they refer to."""

import enum

import msgspec

from posthouse.audit.postfix.master import Service
from posthouse.audit.postfix.match_list import MatchList
from posthouse.audit.postfix.opening import Tables
from posthouse.audit.postfix.place import Place
from posthouse.audit.postfix.resolver import Maps, Resolver
from posthouse.audit.postfix.settings import Settings
from posthouse.audit.postfix.text import split_list

_REQUIRED = frozenset(
    (
        "reject_unauth_destination",
        "defer_unauth_destination",
        "reject",
        "defer",
        "defer_if_permit",
        "check_relay_domains",
    )
)


class Stage(enum.Enum):
    """The restriction lists in the order of a session, by their parameters."""

    CLIENT = "smtpd_client_restrictions"
    HELO = "smtpd_helo_restrictions"
    SENDER = "smtpd_sender_restrictions"
    RELAY = "smtpd_relay_restrictions"
    RECIPIENT = "smtpd_recipient_restrictions"
    DATA = "smtpd_data_restrictions"
    END_OF_DATA = "smtpd_end_of_data_restrictions"


class Restriction(msgspec.Struct, frozen=True):
    """One token of a list."""

    text: str
    place: Place


class Smtpd:
    """A service under audit. `settings` are its own, with overrides; the resolver is that which it asks."""

    def __init__(self, service: Service, settings: Settings, services: list[Service], tables: Tables) -> None:
        own = settings.under(service.overrides)
        self.service = service
        self.settings = own
        self.resolver = Resolver(settings, own, services, tables)
        self.tables = tables
        self.lists = {stage: self.tokens(stage.value) for stage in Stage}
        self.classes = {name: self.tokens(name) for name in own.items("smtpd_restriction_classes")}
        self.mynetworks = MatchList("mynetworks", "host", own, tables)
        self.backup_networks = MatchList("permit_mx_backup_networks", "host", own, tables)
        self.xclient_hosts = MatchList("smtpd_authorized_xclient_hosts", "host", own, tables)
        self.relay_domains = MatchList("relay_domains", "domain", own, tables)  # asked by check_relay_domains only
        self.client_certificates = Maps("relay_clientcerts", own, tables)
        self.login_maps = Maps("smtpd_sender_login_maps", own, tables)
        self.recipient_maps = [
            Maps(name, own, tables) for name in ("recipient_canonical_maps", "canonical_maps", "virtual_alias_maps")
        ]
        self.listed = {
            name: Maps(name, own, tables)
            for name in ("local_recipient_maps", "virtual_mailbox_maps", "relay_recipient_maps")
        }
        self.version = _version(settings.text("mail_version"))
        self.delays = own.is_yes("smtpd_delay_reject")
        self.untrusted_routing = own.is_yes("allow_untrusted_routing")
        self.with_parents = "smtpd_access_maps" in own.items("parent_domain_matches_subdomains")
        self.null_key = own.text("smtpd_null_access_lookup_key") or "<>"
        self.has_proxy_filter = bool(own.text("smtpd_proxy_filter"))
        self.has_login = own.is_yes("smtpd_sasl_auth_enable")
        self.relay_first = own.is_yes("smtpd_relay_before_recipient_restrictions")
        self.has_tls = self._has_tls()
        self.asks_certificate = own.is_yes("smtpd_tls_ask_ccert") or own.is_yes("smtpd_tls_req_ccert")

    def tokens(self, name: str) -> tuple[Restriction, ...]:
        """A restriction list."""
        return self.parse(self.settings.text(name), name)

    def parse(self, value: str, name: str) -> tuple[Restriction, ...]:
        """A list's text; `name` is the parameter that holds it."""
        return tuple(Restriction(text, self.settings.place(name, text)) for text in split_list(value))

    @property
    def must_encrypt(self) -> bool:
        """Whether MAIL is refused before TLS."""
        level = self.settings.text("smtpd_tls_security_level").lower()
        return self.is_wrapped or level == "encrypt" or (not level and self.settings.is_yes("smtpd_enforce_tls"))

    @property
    def is_wrapped(self) -> bool:
        """Whether TLS begins at once."""
        return self.settings.is_yes("smtpd_tls_wrappermode")

    @property
    def demands_certificate(self) -> bool:
        """Whether a client without a certificate of a trusted authority is turned away."""
        return self.must_encrypt and self.settings.is_yes("smtpd_tls_req_ccert")

    def is_complete(self) -> bool:
        """Whether smtpd would start: one of the two lists must hold a working refusal (RCPT is fatal otherwise)."""
        return any(self._has_required(self.lists[stage]) for stage in (Stage.RELAY, Stage.RECIPIENT))

    def _has_required(self, restrictions: tuple[Restriction, ...], depth: int = 0) -> bool:
        warned = False
        for restriction in restrictions:
            name = restriction.text.lower()
            if warned:
                warned = False
                continue
            warned = name == "warn_if_reject"
            if name == "permit":
                return False
            if name in _REQUIRED:
                return True
            inner = self.classes.get(restriction.text)
            if inner is not None and depth < 100 and self._has_required(inner, depth + 1):
                return True
        return False

    def _has_tls(self) -> bool:
        own = self.settings
        level = own.text("smtpd_tls_security_level").lower()
        wanted = level not in ("", "none") or own.is_yes("smtpd_use_tls") or own.is_yes("smtpd_enforce_tls")
        return (wanted or self.is_wrapped) and bool(
            own.text("smtpd_tls_cert_file") or own.text("smtpd_tls_chain_files") or own.text("smtpd_tls_eccert_file")
        )


def _version(text: str) -> tuple[int, int] | None:
    """3.9 of "3.9.1"; None when it isn't known."""
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else None
