"""What echoes have shown about this server's listeners, kept over restarts: where clients are masked, and where they are not.

A listener at which an echo differed has its trusted networks suspended at once, in all workers, until

    the listener or the networks of [relay] are changed in the configuration, by reload or restart, or
    `posthouse relay trust LISTENER` says on purpose that they count again.

An echo that agrees afterwards lifts nothing: one way to a listener may be masked (IPv6 through a container's proxy, say)
and another not. Of one nonce only the first echo at a listener counts, so that nobody can use an overheard one later.
"""

import time
from pathlib import Path
from typing import Any

import msgspec

from posthouse.config import Config, ListenerRole, ListenerSettings
from posthouse.net.listen import address_text
from posthouse.observe import log, metrics
from posthouse.policy.networks import NetworkSet, parse_address
from posthouse.tester.echo import Echo, Heard

FILE_NAME = "echoes.json"
_MOST_NONCES = 1000


class Mask(msgspec.Struct, frozen=True):
    """A listener whose trusted networks are suspended. `held` and `seen` are addresses of the one client that was the tester;
    `seen_at` in seconds since 1970. `fingerprint` is of the configuration that the listener had."""

    listener: str
    held: str
    seen: str
    tester: str
    seen_at: float
    fingerprint: str

    @property
    def sentence(self) -> str:
        """Why, and what to do."""
        if not self.seen:
            return (
                f"{self.listener}: trusted networks are suspended, since {FILE_NAME} in the data directory can't be read "
                f"and may say that clients are masked. Give the server its file back, or say "
                f"`posthouse relay trust {self.listener}`."
            )
        return (
            f"{self.listener}: trusted networks are suspended since {_when(self.seen_at)}: the tester {self.tester} came from "
            f"{self.held} and was seen as {self.seen}, so something in front of this server (NAT, a container's bridge or "
            f'proxy, a load balancer) hides who its clients are. Mend that, or use PROXY (proxy = "required"), or take '
            f"the network out of trusted_networks, and reload; or say `posthouse relay trust {self.listener}`."
        )


class Agreement(msgspec.Struct, frozen=True):
    """The last echo at a listener that agreed: its clients' addresses were real then."""

    listener: str
    address: str
    tester: str
    seen_at: float

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.listener}: clients were seen by their own addresses on {_when(self.seen_at)} (tester {self.tester}, {self.address})"


class Findings(msgspec.Struct, frozen=True):
    """What is known of all listeners."""

    masks: tuple[Mask, ...] = ()
    agreements: tuple[Agreement, ...] = ()

    @property
    def suspended(self) -> tuple[str, ...]:
        """The listeners whose networks don't count."""
        return tuple(mask.listener for mask in self.masks)


class FindingsUnreadable(Exception):
    """The file can't be read: nobody knows whether something is suspended. One sentence."""


def listener_key(listener: ListenerSettings) -> str:
    """How findings name a listener: as the configuration does, port 0 included."""
    return address_text(listener.host, listener.port)


def fingerprint_of(config: Config, listener: ListenerSettings) -> str:
    """All by which a mask of this listener could have been mended in the configuration."""
    relay = config.relay
    parts = (
        listener.role,
        listener.proxy,
        *listener.proxies,
        "networks",
        *relay.trusted_networks,
        "strangers",
        *relay.gateways_as_strangers,
        "trusted",
        *relay.gateways_trusted,
    )
    return " ".join(map(str, parts))


def read_findings(data_dir: Path) -> Findings:
    """What the file says; nothing when there is none. FindingsUnreadable."""
    path = data_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Findings)
    except FileNotFoundError:
        return Findings()
    except (OSError, msgspec.MsgspecError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise FindingsUnreadable(
            f"{path} can't be read ({words}), so nobody knows whether networks are suspended"
        ) from error


def findings_text(findings: Findings) -> str:
    """What `read_findings` reads."""
    return msgspec.json.encode(findings).decode()


def findings_at_start(config: Config, data_dir: Path) -> Findings:
    """What holds from the start on. Where the file can't be read every trusted network is suspended: closed when in doubt."""
    try:
        return still_true(read_findings(data_dir), config)
    except FindingsUnreadable as error:
        log.error("echoes-unreadable", words=str(error))
        return Findings(
            tuple(
                Mask(listener_key(one), "", "", "", time.time(), fingerprint_of(config, one))
                for one in config.listeners
                if one.role is ListenerRole.RELAY
            )
        )


def still_true(findings: Findings, config: Config) -> Findings:
    """What is left of it under a configuration: a listener that is changed, or gone, is judged anew."""
    prints = {listener_key(one): fingerprint_of(config, one) for one in config.listeners}
    return Findings(
        tuple(mask for mask in findings.masks if prints.get(mask.listener) == mask.fingerprint),
        tuple(agreement for agreement in findings.agreements if agreement.listener in prints),
    )


def lifted(findings: Findings, listener: str) -> Findings:
    """Without the suspension of that listener."""
    return msgspec.structs.replace(findings, masks=tuple(mask for mask in findings.masks if mask.listener != listener))


class EchoJudge:
    """Takes the echoes that the workers heard; the supervisor has one. `findings` is what holds now."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self._judged: dict[tuple[str, str], Heard] = {}

    def hear(self, config: Config, listener: str, echo: Echo) -> bool:
        """Whether this echo changes the findings."""
        if echo.heard not in (Heard.AGREES, Heard.DIFFERS) or not self._is_first(listener, echo):
            return False
        found = next((one for one in config.listeners if listener_key(one) == listener), None)
        if found is None or found.role is not ListenerRole.RELAY:
            return False  # gone with a reload, or one where networks don't count anyway
        now = time.time()
        if echo.heard is Heard.AGREES:
            agreement = Agreement(listener, echo.held, echo.tester, now)
            others = tuple(one for one in self.findings.agreements if one.listener != listener)
            self.findings = msgspec.structs.replace(self.findings, agreements=(*others, agreement))
            log.info("echo-agrees", listener=listener, client=echo.seen, tester=echo.tester)
            return True
        mask = Mask(listener, echo.held, echo.seen, echo.tester, now, fingerprint_of(config, found))
        masks = (*lifted(self.findings, listener).masks, mask)
        agreements = tuple(one for one in self.findings.agreements if one.listener != listener)
        self.findings = Findings(masks, agreements)
        is_trusted = parse_address(echo.seen) in NetworkSet.parse(config.relay.trusted_networks)
        log.error(
            "clients-masked", listener=listener, held=echo.held, seen=echo.seen, trusted=is_trusted, words=mask.sentence
        )
        return True

    def _is_first(self, listener: str, echo: Echo) -> bool:
        key = (listener, echo.nonce_id)
        if key in self._judged:
            return False
        if len(self._judged) >= _MOST_NONCES:
            del self._judged[next(iter(self._judged))]
        self._judged[key] = echo.heard
        return True


def status_of(findings: Findings) -> dict[str, Any]:
    """What `relay status` and `check` tell; the keys are public."""
    return {
        "suspended": [
            {
                "listener": mask.listener,
                "held": mask.held,
                "seen": mask.seen,
                "tester": mask.tester,
                "seen_at": mask.seen_at,
                "words": mask.sentence,
            }
            for mask in findings.masks
        ],
        "echoes": [{**msgspec.structs.asdict(one), "words": one.sentence} for one in findings.agreements],
    }


class Seen(msgspec.Struct, frozen=True):
    """What `check` tells of tests from outside: keys of its document, and lines."""

    document: dict[str, Any]
    lines: tuple[str, ...]


def seen_from_outside(config: Config) -> Seen:
    """What echoes have shown of this configuration's listeners, as far as this user may read it."""
    try:
        findings = still_true(read_findings(config.data_dir), config)
    except FindingsUnreadable as error:
        return Seen({"suspended": None, "echoes": None}, (f"mind: {error}",))
    untried = sorted(
        listener_key(one)
        for one in config.listeners
        if one.role is ListenerRole.RELAY
        and listener_key(one) not in {*findings.suspended, *(agreement.listener for agreement in findings.agreements)}
    )
    asked = (
        "From outside nobody has tested yet whether client addresses are real at "
        f"{', '.join(untried)}: `posthouse relay nonce` begins such a test."
    )
    lines = (
        *(f"SUSPENDED: {mask.sentence}" for mask in findings.masks),
        *(agreement.sentence for agreement in findings.agreements),
        *((asked,) if untried else ()),
    )
    return Seen(status_of(findings), lines)


def note_metrics(findings: Findings, config: Config) -> None:
    """A gauge for each listener where networks could count: 1 suspended, 0 not."""
    metrics.networks_suspended.clear()
    for listener in config.listeners:
        if listener.role is ListenerRole.RELAY:
            key = listener_key(listener)
            metrics.networks_suspended.set(1 if key in findings.suspended else 0, key)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
