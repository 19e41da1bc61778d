"""The one oracle of the fault programme: what clients were promised, held against what arrived, byte for byte.

Two logs are enough. A client notes each message before it sends it (id, digest of its octets, recipients) and again when
it has been acknowledged. A next hop notes each recipient of each message it takes, with the digest of what arrived; so
does whoever looks into the queue and the mailboxes at the end. From these:

    lost        acknowledged for a recipient, and neither arrived nor queued nor returned to its sender: must be none
    altered     arrived, or is queued, with other octets than were sent: must be none
    phantom     arrived, and was never sent to that recipient: must be none
    duplicate   arrived again. Allowed only where a fault fell between the next hop's answer and our record of it, so each
                one's earlier arrival must lie shortly before a fault; those that don't are `unexplained`: must be none.
                Notices to senders: each fault since their message was sent may make one more be written, and each that
                was delivered be delivered again: of n faults at most (n + 1)(n + 2) / 2 arrivals

A message that got no answer, or a 4yz one, may exist or not: only what was acknowledged must.
"""

import contextlib
import hashlib
import itertools
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from posthouse.mail.envelope import shard_of
from posthouse.mail.message import Message
from posthouse.smtp.dots import plain
from posthouse.spool.inspect import Filter, State, matching_ids
from posthouse.spool.sqlite import SqliteSpool
from spooling import SMALL

RECORDED_WITHIN = 0.1
"""Seconds within which a delivery is on record after the next hop's reply: what the relay promises."""

EXPLAINED_WITHIN = 2.0
"""Seconds between an arrival and the fault that explains a second one: the promise, and slack for a machine whose disk is kept busy by
other tests of this suite (half a second was too little there)."""

ID_FIELD = b"X-Fault-Id: "
_ID = re.compile(rb"^X-Fault-Id: (\S+)\r?$", re.MULTILINE)

Key = tuple[str, str]
"""A message's id and one of its recipients."""


def digest(octets: bytes) -> str:
    """SHA-256 of a content whose line ends are all CRLF (a Maildir has LF)."""
    return hashlib.sha256(octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")).hexdigest()


def identify(octets: bytes) -> tuple[str, str]:
    """(id, digest) of a content that has been on its way: what relays put in front is left out. ("?", ...) without an id."""
    found = _ID.search(octets)
    return (found[1].decode(), digest(octets[found.start() :])) if found else ("?", digest(octets))


def id_within(octets: bytes) -> str:
    """The id of the message that a notice is about."""
    found = _ID.search(octets)
    return found[1].decode() if found else "?"


class Arrival(msgspec.Struct, frozen=True):
    """One message for one recipient at a next hop. `at` is time.monotonic(), which all processes of a machine share.

    `digest` is empty for a notice to the sender: `id` is then that of the message it is about.
    """

    at: float
    id: str
    recipient: str
    digest: str
    is_notice: bool = False
    is_answered: bool = True
    """False when a next hop took it without saying so: then it must come again."""

    def line(self) -> bytes:
        """As it is written to a log."""
        return msgspec.json.encode(self) + b"\n"


def arrivals_in(log: Path) -> Iterator[Arrival]:
    """What a next hop's log holds."""
    with log.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=Arrival)


class Ledger:
    """What clients sent, what was promised to them, and when faults fell. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}
        self._sent: dict[str, float] = {}
        self._recipients: dict[str, tuple[str, ...]] = {}
        self._acknowledged: dict[str, float] = {}
        self.refused: defaultdict[str, int] = defaultdict(int)
        """How many got which code, and "none" for no answer."""
        self.faults: list[tuple[float, float]] = []
        """When each began, and from when on nothing can come any more from who died of it."""

    def sends(self, name: str, octets: bytes, recipients: Iterable[str]) -> None:
        """A message is about to be sent."""
        found = digest(octets)
        with self._lock:
            self._digests[name] = found
            self._recipients[name] = tuple(recipients)
            self._sent[name] = time.monotonic()

    def answered(self, name: str, reply: str) -> None:
        """A message's final reply; "" for none."""
        if reply.startswith("250"):
            self._acknowledged[name] = time.monotonic()
            return
        with self._lock:
            self.refused[reply[:3] or "none"] += 1

    def fault(self) -> None:
        """A fault falls now."""
        now = time.monotonic()
        self.faults.append((now, now))

    def fault_is_over(self) -> None:
        """Whoever it has killed is dead, and next hops have read all that it had sent: until then arrivals may be its own."""
        self.faults[-1] = (self.faults[-1][0], time.monotonic())

    @property
    def acknowledged(self) -> int:
        """How many messages were acknowledged."""
        return len(self._acknowledged)

    def acknowledged_since(self, moment: float) -> list[str]:
        """Ids acknowledged after time.monotonic() was `moment`."""
        return [name for name, at in list(self._acknowledged.items()) if at >= moment]

    def acknowledged_at(self, name: str) -> float:
        """When it was, as time.monotonic()."""
        return self._acknowledged[name]

    def promised(self) -> set[Key]:
        """Each recipient of each acknowledged message."""
        return {(name, recipient) for name in list(self._acknowledged) for recipient in self._recipients[name]}

    def digest_of(self, name: str) -> str:
        """Of what was sent under this id; "" when nothing was."""
        return self._digests.get(name, "")

    def faults_since_sent(self, name: str, until: float) -> int:
        """How many faults fell after a message was sent and before `until`."""
        return sum(self._sent.get(name, until) <= over and began <= until for began, over in self.faults)

    def was_sent_to(self, name: str, recipient: str) -> bool:
        """Whether a client ever sent that message to that recipient."""
        return recipient in self._recipients.get(name, ())


class Findings(msgspec.Struct):
    """What the oracle says. `problems` is empty when the promise was kept."""

    acknowledged: int = 0
    recipients: int = 0
    arrived: int = 0
    returned: int = 0
    queued: int = 0
    set_aside: int = 0
    """Messages that were held when the faults were over, since too many of these had fallen on their attempts: released then."""
    faults: int = 0
    unacknowledged: int = 0
    """Arrived although no acknowledgement was seen: allowed."""
    duplicates: int = 0
    duplicate_notices: int = 0
    oldest_duplicate_ms: int = 0
    """The longest time between an arrival and the fault that made it come again."""
    lost: list[Key] = []
    altered: list[Key] = []
    phantoms: list[Key] = []
    unexplained: list[Key] = []
    """Duplicates that no fault accounts for."""
    remarks: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What must not be, in words."""
        kinds = (
            ("lost", self.lost),
            ("altered", self.altered),
            ("never sent", self.phantoms),
            ("duplicates that no fault explains", self.unexplained),
        )
        return [f"{len(keys)} {words}: {sorted(keys)[:5]}" for words, keys in kinds if keys] + self.remarks[:10]

    def __str__(self) -> str:
        return (
            f"{self.faults} faults, {self.acknowledged} messages acknowledged for {self.recipients} recipients, "
            f"{len(self.lost)} lost, {len(self.altered)} altered, {len(self.phantoms)} never sent, "
            f"{self.duplicates} duplicates (the oldest {self.oldest_duplicate_ms} ms before its fault, "
            f"{len(self.unexplained)} unexplained), {self.returned} returned ({self.duplicate_notices} notices twice), "
            f"{self.queued} still queued, {self.set_aside} had been set aside, "
            f"{self.unacknowledged} arrived without having been acknowledged"
        )


def judge(ledger: Ledger, arrivals: Iterable[Arrival], queued: Iterable[Arrival] = ()) -> Findings:
    """Holds the logs against each other; `queued` is what the queue still holds (see `queued_in`)."""
    by_key: defaultdict[Key, list[Arrival]] = defaultdict(list)
    for one in arrivals:
        by_key[(one.id, "notice" if one.is_notice else one.recipient)].append(one)
    promised = ledger.promised()
    findings = Findings(ledger.acknowledged, len(promised), faults=len(ledger.faults))
    waiting: set[Key] = set()
    for one in queued:
        key = (one.id, one.recipient)
        if one.is_notice:
            waiting.add((one.id, "notice"))
        elif one.digest == ledger.digest_of(one.id):
            waiting.add(key)
        else:
            findings.altered.append(key)
    findings.queued = len(waiting)
    for key, ones in by_key.items():
        _judge_arrivals(findings, ledger, key, ones)
    for key in promised - by_key.keys() - waiting:
        notice = (key[0], "notice")
        if notice not in by_key and notice not in waiting:
            findings.lost.append(key)
    findings.unacknowledged = len([key for key in by_key if key[1] != "notice" and key not in promised])
    return findings


def _judge_arrivals(findings: Findings, ledger: Ledger, key: Key, ones: list[Arrival]) -> None:
    name, recipient = key
    if recipient == "notice":
        findings.returned += 1
        if not ledger.digest_of(name):
            findings.phantoms.append(key)
    else:
        findings.arrived += 1
        if not ledger.was_sent_to(name, recipient):
            findings.phantoms.append(key)
        elif any(one.digest != ledger.digest_of(name) for one in ones):
            findings.altered.append(key)
    ones.sort(key=lambda one: one.at)
    if recipient == "notice":
        again = len(ones) - 1
        findings.duplicate_notices += again
        faults = ledger.faults_since_sent(name, ones[-1].at)
        findings.unexplained += [key] * max(0, len(ones) - (faults + 1) * (faults + 2) // 2)
        return
    for earlier, later in itertools.pairwise(ones):
        findings.duplicates += 1
        ages = [began - earlier.at for began, over in ledger.faults if earlier.at <= over and began <= later.at]
        if not earlier.is_answered:
            continue
        if not ages or min(ages) > EXPLAINED_WITHIN:
            findings.unexplained.append(key)
            last = max((over for _, over in ledger.faults if over < earlier.at), default=0.0)
            fault = f"{min(ages):.3f} s before a fault" if ages else "no fault in between"
            fault += f", {earlier.at - last:.3f} s after one"
            findings.remarks.append(f"{key}: came again after {later.at - earlier.at:.3f} s, {fault}")
        else:
            findings.oldest_duplicate_ms = max(findings.oldest_duplicate_ms, round(1000 * min(ages)))


def content_of(message: Message) -> bytes:
    """A stored message's octets as they were written, its trace fields left out."""
    content = message.content
    octets = b"".join(content.pieces)
    if content.file is not None:
        octets = Path(content.file.path).read_bytes()
    return plain(octets, content.dots)


def queued_in(data_dir: Path) -> list[Arrival]:
    """What the queue below a data directory holds, while no server runs. Damaged messages are left out."""
    return [one for shard in sorted((data_dir / "spool").glob("[0-9]*")) for one in _queued_in_shard(shard)]


def _queued_in_shard(directory: Path) -> Iterator[Arrival]:
    spool = SqliteSpool(directory, int(directory.name), settings=SMALL)
    try:
        rows = [w for destination, _, _ in spool.destinations() for w in spool.due(destination, 1 << 60, 1 << 30)]
        held = matching_ids(directory.parent.parent, Filter(state=State.HELD), 1 << 30)
        rows += [w for one in held if shard_of(one) == int(directory.name) for w in spool.pending(one)]
        for row in rows:
            try:
                envelope, message = spool.load(row.queue_id)
            except Exception:  # it is as if it were not there: the promise is not kept
                continue
            octets = content_of(message)
            recipient = str(envelope.recipients[row.index].forward_path)
            if envelope.reverse_path.is_null:
                yield Arrival(0.0, id_within(octets), recipient, "", is_notice=True)
            else:
                name, octets_digest = identify(octets)
                yield Arrival(0.0, name, recipient, octets_digest)
    finally:
        spool.close()


def mailbox_arrivals(maildir: Path, recipient: str) -> list[Arrival]:
    """What a Maildir holds for a recipient, when it was written."""
    offset = time.monotonic() - time.time()
    found = []
    for path in (maildir / "new").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # taken back, since its name could not be made durable
            name, octets_digest = identify(path.read_bytes())
            found.append(Arrival(path.stat().st_mtime + offset, name, recipient, octets_digest))
    return found
