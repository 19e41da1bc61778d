"""What smtpd(8) answers one stranger, list by list and restriction by restriction (smtpd_check.c, access(5)).

A walk follows Postfix to the letter where the configuration decides. Where the world decides (DNS, blocklists, address
verification), the stranger is taken to be one who passes: such strangers exist. Where something can't be read, the
oracle decides, and the audit looks at every way it may.
"""

from collections.abc import Callable, Iterable

from posthouse.audit.postfix.match_list import parents
from posthouse.audit.postfix.oracle import Oracle
from posthouse.audit.postfix.outcome import Outcome, Permit, Status
from posthouse.audit.postfix.place import Hit, ServerError, Stop, Unopened
from posthouse.audit.postfix.resolver import Class, Maps, Resolved
from posthouse.audit.postfix.smtpd import Restriction, Smtpd, Stage
from posthouse.audit.postfix.stranger import Stranger
from posthouse.audit.postfix.table import Found, Table

_DEEPEST = 100


class Walk:
    """One mail of one stranger through one smtpd, under one reading of what is unknown."""

    def __init__(self, smtpd: Smtpd, stranger: Stranger, oracle: Oracle) -> None:
        self._smtpd = smtpd
        self._stranger = stranger
        self._oracle = oracle
        self._stage = Stage.CLIENT
        self._hello: str | None = None
        self._sender: str | None = None
        self._recipient: str | None = None
        self._recursion = 0
        self._warns_at = 0
        self._defers_if_permit = False
        self._defers_if_reject = False
        self._is_dropped = False
        self._is_discarded = False
        self._is_listed_checked = False
        self._entry: Hit | None = None
        self._permits: list[Permit] = []
        self._resolved: dict[str, Resolved] = {}

    def outcome(self) -> Outcome:
        """All stages in order, to the end of the data."""
        try:
            return self._outcome()
        except ServerError:
            return Outcome(is_accepted=False)

    def _outcome(self) -> Outcome:
        stranger = self._stranger
        if not self._before_recipient() or not self._at_recipient():
            return Outcome(is_accepted=False)
        for stage in (Stage.DATA, Stage.END_OF_DATA):
            self._recipient = stranger.forward_path if stranger.recipients == 1 else None
            self._defers_if_permit = False
            if self._list(stage, "") is Status.REJECT or self._defers_if_permit:
                return Outcome(is_accepted=False)
        return Outcome(True, tuple(self._permits), self._is_dropped, self._resolve(stranger.forward_path))

    def _before_recipient(self) -> bool:
        stranger, delays = self._stranger, self._smtpd.delays
        if delays:
            self._hello, self._sender = stranger.hello, stranger.reverse_path
            self._recipient = stranger.forward_path
        if self._list(Stage.CLIENT, "check_client_access") is Status.REJECT:
            return False
        self._hello = stranger.hello
        if self._hello is not None and self._list(Stage.HELO, "check_helo_access") is Status.REJECT:
            return False
        self._sender = stranger.reverse_path
        if self._list(Stage.SENDER, "check_sender_access") is Status.REJECT:
            return False
        unlisted = self._smtpd.settings.is_yes("smtpd_reject_unlisted_sender") and self._sender
        return not (unlisted and self._unlisted(self._sender or "") is Status.REJECT)

    def _at_recipient(self) -> bool:
        self._recipient = self._stranger.forward_path
        if self._recipient.lower() == "postmaster":
            return True
        self._is_listed_checked = False
        stages = (Stage.RELAY, Stage.RECIPIENT) if self._smtpd.relay_first else (Stage.RECIPIENT, Stage.RELAY)
        self._defers_if_reject = False
        for stage in stages:
            if self._list(stage, "check_recipient_access", keeps_deferral=True) is Status.REJECT:
                return False
        if self._defers_if_permit:
            return False
        if self._smtpd.settings.is_yes("smtpd_reject_unlisted_recipient") and not self._is_discarded:
            return self._recipient_listed() is not Status.REJECT
        return True

    # --- lists --------------------------------------------------------------------------------------------------------

    def _list(self, stage: Stage, default: str, *, keeps_deferral: bool = False) -> Status:
        self._stage = stage
        self._recursion = self._warns_at = 0
        if not keeps_deferral:
            self._defers_if_reject = False
        try:
            return self._run(self._smtpd.lists[stage], default)
        except ServerError:  # refuses even behind warn_if_reject
            return Status.REJECT

    def _run(self, restrictions: Iterable[Restriction], default: str) -> Status:
        saved = self._recursion
        self._recursion += 1
        waiting = list(restrictions)
        status = Status.DUNNO
        while waiting and not self._is_discarded:
            restriction = waiting.pop(0)
            if restriction.text.lower() == "warn_if_reject":
                self._warns_at = self._warns_at or self._recursion
                continue
            status = self._one(restriction, waiting, default)
            if self._warns_at >= self._recursion:
                self._warns_at = 0
            if status is not Status.DUNNO or (self._defers_if_permit and self._defers_if_reject):
                break
        self._recursion = saved
        if self._warns_at >= self._recursion:
            self._warns_at = 0
        return status

    def _one(self, restriction: Restriction, waiting: list[Restriction], default: str) -> Status:
        name = restriction.text.lower()
        argument: Restriction | None = None
        if ":" in name or name.startswith("{"):
            if not default:
                raise ServerError
            name, argument = default, restriction
        elif name in _WITH_TABLE:
            if not waiting or ":" not in waiting[0].text:
                raise ServerError
            argument = waiting.pop(0)
        elif name in _WITH_NAME and waiting:
            argument = waiting.pop(0)
        self._entry = None
        handler = _HANDLERS.get(name)
        if handler is not None:
            status = handler(self, argument)
        elif name in _PASSED_BY_SOME:
            return Status.DUNNO
        elif restriction.text in self._smtpd.classes:
            return self._nested(self._smtpd.classes[restriction.text], default)
        else:
            raise ServerError
        if status is Status.OK:
            self._note(restriction, argument)
        return status

    def _nested(self, restrictions: Iterable[Restriction], default: str) -> Status:
        if self._recursion > _DEEPEST:
            raise ServerError
        return self._run(restrictions, default)

    def _note(self, restriction: Restriction, argument: Restriction | None) -> None:
        text = f"{restriction.text} {argument.text}" if argument and argument is not restriction else restriction.text
        place = argument.place if argument else restriction.place
        noted = Permit(self._stage, Restriction(text, place), self._entry)
        if not any(one.stage is self._stage for one in self._permits):
            self._permits.append(noted)

    def _reject(self) -> Status:
        return Status.DUNNO if self._warns_at else Status.REJECT

    # --- restrictions that need no table ------------------------------------------------------------------------------

    def _permit(self, _: Restriction | None) -> Status:
        return Status.OK

    def _refuse(self, _: Restriction | None) -> Status:
        return self._reject()

    def _defer_if_permit(self, _: Restriction | None) -> Status:
        if not self._warns_at:
            self._defers_if_permit = True
        return Status.DUNNO

    def _defer_if_reject(self, _: Restriction | None) -> Status:
        self._defers_if_reject = True
        return Status.DUNNO

    def _plaintext(self, _: Restriction | None) -> Status:
        return Status.DUNNO if self._stranger.is_encrypted else self._reject()

    def _unknown_client(self, _: Restriction | None) -> Status:
        return self._reject() if self._stranger.name == "unknown" else Status.DUNNO

    def _unknown_reverse(self, _: Restriction | None) -> Status:
        return self._reject() if self._stranger.reverse_name == "unknown" else Status.DUNNO

    def _mynetworks(self, _: Restriction | None) -> Status:
        found = self._smtpd.mynetworks.match_host(self._stranger.name, self._stranger.client)
        hit = self._oracle.settle(found, f"mynetworks {self._stranger.client}")
        self._entry = hit
        return Status.OK if hit else Status.DUNNO

    def _login(self, _: Restriction | None) -> Status:
        return Status.OK if self._smtpd.has_login and self._stranger.login else Status.DUNNO

    def _all_certificates(self, _: Restriction | None) -> Status:
        return Status.OK if self._stranger.is_certified else self._certificate(_)

    def _certificate(self, _: Restriction | None) -> Status:
        if not self._stranger.has_certificate:
            return Status.DUNNO
        hit = self._oracle.settle(self._smtpd.client_certificates.find(FINGERPRINT), "relay_clientcerts")
        self._entry = hit
        return Status.OK if hit else Status.DUNNO

    def _policy(self, argument: Restriction | None) -> Status:
        if argument is None or ":" not in argument.text:
            raise ServerError
        words = (
            f"{argument.text} is a policy service: it may permit, refuse or leave it to the next; ask whoever runs it"
        )
        stop = Stop(argument.place, words)
        choice = self._oracle.choose(stop, f"{self._stage}", 3)
        return (Status.OK, Status.DUNNO, self._reject())[choice]

    def _sleep(self, argument: Restriction | None) -> Status:
        if argument is None or not argument.text.isdigit():
            raise ServerError
        return Status.DUNNO

    def _naked_address(self, _: Restriction | None) -> Status:
        self._must_be_older("permit_naked_ip_address")
        hello = self._stranger.hello if self._hello is not None else None
        return Status.OK if hello and all(char in "0123456789.:" for char in hello) else Status.DUNNO

    def _must_be_older(self, name: str) -> None:
        """Postfix 3.9 answers 451 where one of these stands; earlier ones obey it."""
        version, stage = self._smtpd.version, self._stage.value
        if version is None:
            words = f"{name} permits before Postfix 3.9 and refuses from then on; take it out, or check where Postfix is installed"
            stop = Stop(self._smtpd.settings.place(stage, name), words)
            version = ((3, 8), (3, 9))[self._oracle.choose(stop, name, 2)]
        if version >= (3, 9):
            raise ServerError

    def _helo_syntax(self, _: Restriction | None) -> Status:
        if self._hello is None or self._hello.startswith("["):
            return Status.DUNNO
        fine = all(char.isalnum() or char in "-._:" for char in self._hello) and ".." not in self._hello
        return Status.DUNNO if fine else self._reject()

    def _helo_full(self, _: Restriction | None) -> Status:
        if self._hello is None or self._hello.startswith("["):
            return Status.DUNNO
        name = self._hello.removesuffix(".")
        is_full = "." in name and not name.replace(".", "").isdigit()
        return self._helo_syntax(None) if is_full else self._reject()

    def _full_sender(self, _: Restriction | None) -> Status:
        return self._full(self._sender)

    def _full_recipient(self, _: Restriction | None) -> Status:
        return self._full(self._recipient)

    def _full(self, path: str | None) -> Status:
        if not path:
            return Status.DUNNO
        domain = path.rpartition("@")[2] if "@" in path else ""
        return Status.DUNNO if domain.startswith("[") or "." in domain.strip(".") else self._reject()

    def _login_mismatch(self, _: Restriction | None) -> Status:
        if not self._smtpd.has_login or not self._sender or self._stranger.login:
            return Status.DUNNO
        found = self._smtpd.resolver.find_address(self._smtpd.login_maps, self._resolve(self._sender).address)
        hit = self._oracle.settle(found, f"login {self._sender}")
        return self._reject() if hit else Status.DUNNO

    def _several(self, _: Restriction | None) -> Status:
        limit = 1 if self._stage in (Stage.DATA, Stage.END_OF_DATA) else 0
        before = self._stranger.recipients if limit else self._stranger.recipients - 1
        return self._reject() if self._sender == "" and before > limit else Status.DUNNO

    # --- destinations -------------------------------------------------------------------------------------------------

    def _resolve(self, path: str) -> Resolved:
        if path not in self._resolved:
            self._resolved[path] = self._smtpd.resolver.resolve(path, self._oracle)
        return self._resolved[path]

    def _is_authorised(self) -> bool:
        """permit_auth_destination()."""
        resolved = self._resolve(self._recipient or "")
        if resolved.is_routed and not self._smtpd.untrusted_routing:
            return False
        self._entry = resolved.hit
        return resolved.is_ours

    def _permit_destination(self, _: Restriction | None) -> Status:
        return Status.OK if self._recipient is not None and self._is_authorised() else Status.DUNNO

    def _reject_destination(self, _: Restriction | None) -> Status:
        return Status.DUNNO if self._recipient is None or self._is_authorised() else self._reject()

    def _relay_domains(self, _: Restriction | None) -> Status:
        """Until Postfix 3.9: clients of relay_domains may send anywhere."""
        self._must_be_older("check_relay_domains")
        if self._recipient is None:
            return Status.DUNNO
        name = self._stranger.name
        client = self._oracle.settle(self._smtpd.relay_domains.match_name(name), f"relay_domains {name}")
        self._entry = client
        return Status.OK if client or self._is_authorised() else self._reject()

    def _backup(self, _: Restriction | None) -> Status:
        """Anyone can name us as the backup of his own domain, unless the primaries must lie in networks of ours."""
        if self._recipient is None:
            return Status.DUNNO
        if self._is_authorised():
            return Status.OK
        resolved = self._resolve(self._recipient)
        routed = resolved.is_routed and not self._smtpd.untrusted_routing
        if routed or resolved.domain.startswith("["):
            return Status.DUNNO
        if not self._smtpd.backup_networks.patterns:
            return Status.OK
        found = self._smtpd.backup_networks.match_host("mx." + resolved.domain, PRIMARY)
        return Status.OK if self._oracle.settle(found, "backup networks") else Status.DUNNO

    def _recipient_listed(self, _: Restriction | None = None) -> Status:
        if self._is_listed_checked or not self._recipient:
            return Status.DUNNO
        if not self._warns_at:
            self._is_listed_checked = True
        return self._unlisted(self._recipient)

    def _sender_listed(self, _: Restriction | None) -> Status:
        return self._unlisted(self._sender) if self._sender else Status.DUNNO

    def _unlisted(self, path: str) -> Status:
        """check_rcpt_maps()."""
        smtpd = self._smtpd
        if "no_unknown_recipient_checks" in smtpd.settings.items("receive_override_options"):
            return Status.DUNNO
        resolved = self._resolve(path)
        if any(self._is_in(maps, resolved.address, "rewritten") for maps in smtpd.recipient_maps):
            return Status.DUNNO
        program, _ = smtpd.resolver.transport(resolved, self._oracle)
        if program in ("error", "retry"):
            return self._reject()
        name = {
            Class.LOCAL: "local_recipient_maps",
            Class.VIRTUAL: "virtual_mailbox_maps",
            Class.RELAY: "relay_recipient_maps",
        }.get(resolved.kind, "")
        if not name or not smtpd.listed[name]:
            return Status.DUNNO
        local = resolved.address.rpartition("@")[0]
        if resolved.kind is Class.LOCAL and local in ("postmaster", "double-bounce", "mailer-daemon"):
            return Status.DUNNO
        return Status.DUNNO if self._is_in(smtpd.listed[name], resolved.address, name) else self._reject()

    def _is_in(self, maps: Maps, address: str, what: str) -> bool:
        found = self._smtpd.resolver.find_address(maps, address)
        return self._oracle.settle(found, f"{what} {address}") is not None

    # --- tables -------------------------------------------------------------------------------------------------------

    def _table(self, argument: Restriction | None) -> Table:
        if argument is None:
            raise ServerError
        return self._smtpd.tables.open(argument.text, argument.place)

    def _client_table(self, argument: Restriction | None) -> Status:
        return self._host_table(argument, self._stranger.name)

    def _reverse_table(self, argument: Restriction | None) -> Status:
        status = self._host_table(argument, self._stranger.reverse_name)
        if status is Status.OK and not self._is_discarded:
            raise ServerError  # forbid_allowlist(): a name that anyone can give his address allows nothing
        return status

    def _host_table(self, argument: Restriction | None, name: str) -> Status:
        table = self._table(argument)
        address = self._stranger.client
        keys = [(name, False)]
        if not _is_number(name):
            keys = self._name_keys(name)
        keys.append((address, False))
        separator = ":" if ":" in address else "."
        part = address
        while separator in part:
            part = part.rpartition(separator)[0]
            keys.append((part, True))
        return self._by_keys(table, keys)

    def _helo_table(self, argument: Restriction | None) -> Status:
        table = self._table(argument)
        if self._hello is None:
            return Status.DUNNO
        return self._by_keys(table, self._name_keys(self._hello))

    def _name_keys(self, name: str) -> list[tuple[str, bool]]:
        return [(part, part != name) for part in parents(name, with_dots=not self._smtpd.with_parents)]

    def _sender_table(self, argument: Restriction | None) -> Status:
        table = self._table(argument)
        if self._sender is None:
            return Status.DUNNO
        if not self._sender:
            return self._by_keys(table, [(self._smtpd.null_key, False)])
        address = self._resolve(self._sender).address
        return self._by_keys(table, self._smtpd.resolver.access_keys(address, with_parents=self._smtpd.with_parents))

    def _recipient_table(self, argument: Restriction | None) -> Status:
        table = self._table(argument)
        if self._recipient is None:
            return Status.DUNNO
        resolved = self._resolve(self._recipient)
        keys = self._smtpd.resolver.access_keys(resolved.address, with_parents=self._smtpd.with_parents)
        status = self._by_keys(table, keys)
        suspicious = resolved.is_routed and not self._smtpd.untrusted_routing
        return Status.DUNNO if status is Status.OK and suspicious else status

    def _certificate_table(self, argument: Restriction | None) -> Status:
        table = self._table(argument)
        return self._by_keys(table, [(FINGERPRINT, False)]) if self._stranger.has_certificate else Status.DUNNO

    def _server_table(self, argument: Restriction | None) -> Status:
        """check_*_{ns,mx,a}_access: his name servers and mail hosts are as he likes; OK is forbidden."""
        table = self._table(argument)
        status = self._by_keys(table, [("ns.stranger.example", False), (self._stranger.client, False)])
        if status is Status.OK and not self._is_discarded:
            raise ServerError
        return status

    def _login_table(self, argument: Restriction | None) -> Status:
        table = self._table(argument)
        known = self._smtpd.has_login and self._stranger.login
        return self._by_keys(table, [(self._stranger.login, False)]) if known else Status.DUNNO

    def _by_keys(self, table: Table, keys: Iterable[tuple[str, bool]]) -> Status:
        for key, is_part in keys:
            if is_part and not table.is_fixed:
                continue
            found: Found = table.find(key)
            if found is not None:
                return self._sealed(found) if isinstance(found, Stop) else self._result(found)
        return Status.DUNNO

    def _sealed(self, stop: Stop) -> Status:
        if isinstance(stop, Unopened):
            return self._reject()  # check_access(): as if the table said 451, so warn_if_reject makes a warning of it
        choice = self._oracle.choose(stop, f"{self._stage}", 3)
        return (Status.OK, Status.DUNNO, self._reject())[choice]

    def _result(self, hit: Hit) -> Status:
        """check_table_result(): what stands on the right-hand side (access(5))."""
        word, _, rest = hit.value.replace("\t", " ").partition(" ")
        action, rest = word.lower(), rest.strip()
        self._entry = hit
        if action in ("reject", "defer", "hangup") or (len(word) == 3 and word.isdigit() and rest and word[0] in "45"):
            return self._reject()
        if action in ("dunno", "info", "warn", "filter", "hold", "prepend", "bcc"):
            return Status.DUNNO
        if action in ("redirect", "discard") and (self._sender is None or self._smtpd.has_proxy_filter):
            return Status.DUNNO  # can_delegate_action(): no mail to act on yet, or nobody to do it
        if action == "redirect":
            self._is_dropped |= "@" in rest
            return Status.DUNNO
        if action == "discard":
            self._is_dropped = self._is_discarded = True
            return Status.OK
        if action in ("defer_if_permit", "defer_if_reject"):
            return self._defer_if_permit(None) if action == "defer_if_permit" else self._defer_if_reject(None)
        if hit.value.isdigit() or action in ("ok", "relay") or not hit.value:
            return Status.OK
        if ":" in hit.value:
            raise ServerError
        inner = tuple(Restriction(text, hit.place) for text in _words(hit.value))
        return self._nested(inner, "")


FINGERPRINT = "D4:1D:8C:D9:8F:00:B2:04:E9:80:09:98:EC:F8:42:7E"
"""That of a certificate which the stranger made: nobody has listed it."""
PRIMARY = "198.51.100.25"
"""The primary MX of a stranger's domain."""


def _words(value: str) -> list[str]:
    return value.replace(",", " ").split()


def _is_number(name: str) -> bool:
    return all(char in "0123456789.:" for char in name)


Handler = Callable[[Walk, Restriction | None], Status]

_HANDLERS: dict[str, Handler] = {
    "permit": Walk._permit,
    "reject": Walk._refuse,
    "defer": Walk._refuse,
    "defer_if_permit": Walk._defer_if_permit,
    "defer_if_reject": Walk._defer_if_reject,
    "reject_plaintext_session": Walk._plaintext,
    "reject_unknown_client_hostname": Walk._unknown_client,
    "reject_unknown_client": Walk._unknown_client,
    "reject_unknown_reverse_client_hostname": Walk._unknown_reverse,
    "permit_mynetworks": Walk._mynetworks,
    "permit_sasl_authenticated": Walk._login,
    "permit_tls_all_clientcerts": Walk._all_certificates,
    "permit_tls_clientcerts": Walk._certificate,
    "permit_naked_ip_address": Walk._naked_address,
    "permit_auth_destination": Walk._permit_destination,
    "reject_unauth_destination": Walk._reject_destination,
    "defer_unauth_destination": Walk._reject_destination,
    "check_relay_domains": Walk._relay_domains,
    "permit_mx_backup": Walk._backup,
    "check_policy_service": Walk._policy,
    "sleep": Walk._sleep,
    "reject_invalid_helo_hostname": Walk._helo_syntax,
    "reject_invalid_hostname": Walk._helo_syntax,
    "reject_non_fqdn_helo_hostname": Walk._helo_full,
    "reject_non_fqdn_hostname": Walk._helo_full,
    "reject_unknown_helo_hostname": Walk._helo_full,
    "reject_unknown_hostname": Walk._helo_full,
    "reject_non_fqdn_sender": Walk._full_sender,
    "reject_non_fqdn_recipient": Walk._full_recipient,
    "reject_sender_login_mismatch": Walk._login_mismatch,
    "reject_unauthenticated_sender_login_mismatch": Walk._login_mismatch,
    "reject_known_sender_login_mismatch": Walk._login_mismatch,
    "reject_multi_recipient_bounce": Walk._several,
    "reject_unlisted_recipient": Walk._recipient_listed,
    "check_recipient_maps": Walk._recipient_listed,
    "reject_unlisted_sender": Walk._sender_listed,
    "check_client_access": Walk._client_table,
    "check_reverse_client_hostname_access": Walk._reverse_table,
    "check_helo_access": Walk._helo_table,
    "check_sender_access": Walk._sender_table,
    "check_recipient_access": Walk._recipient_table,
    "check_ccert_access": Walk._certificate_table,
    "check_sasl_access": Walk._login_table,
    **{
        f"check_{what}_{record}_access": Walk._server_table
        for what in ("client", "reverse_client_hostname", "helo", "sender", "recipient")
        for record in ("ns", "mx", "a")
    },
}

_WITH_TABLE = frozenset(name for name in _HANDLERS if name.endswith("_access")) | {"check_etrn_access"}

_WITH_NAME = frozenset(
    (
        "check_policy_service",
        "sleep",
        "reject_rbl_client",
        "reject_rbl",
        "reject_rhsbl_client",
        "reject_rhsbl_reverse_client",
        "reject_rhsbl_helo",
        "reject_rhsbl_sender",
        "reject_rhsbl_recipient",
        "permit_dnswl_client",
        "permit_rhswl_client",
    )
)

_PASSED_BY_SOME = frozenset(
    (
        *(
            _WITH_NAME - {"check_policy_service", "sleep"}
        ),  # whitelists give no right to relay: Postfix ignores them there
        "check_etrn_access",
        "permit_inet_interfaces",
        "reject_maps_rbl",
        "reject_unauth_pipelining",
        "reject_unknown_address",
        "reject_unknown_sender_domain",
        "reject_unknown_recipient_domain",
        "reject_unverified_sender",
        "reject_unverified_recipient",
        "reject_authenticated_sender_login_mismatch",
    )
)
"""Restrictions that some strangers pass: not on a list, with a domain that exists and an address that answers."""
