"""The cases of the relay test: a table, and how a row becomes lines of a dialogue.

Each row is one way in which a stranger asked some server to carry mail to a third party, and in which some server did. The
table holds what nmap's smtp-open-relay, Metasploit's smtp_relay, rlytest, DSBL's relaytest, ORDB and abuse.net tried, and
more. Numbers are for good: a case may be retired, its number is not given to another.

Placeholders stand in braces (see `Names`). Paths are written here as they are said, brackets and all, since some of them
are wrong on purpose: no engine of ours would print them.
"""

import enum
import re

import msgspec

_FULL_WIDTH = {code: code - 0x21 + 0xFF01 for code in range(ord("a"), ord("z") + 1)}
_placeholder = re.compile(r"\{([a-z_]+)\}").sub


class Way(enum.StrEnum):
    """How a case is said: what stands around MAIL and RCPT."""

    SEPARATE = "separate"
    """MAIL, RCPT, DATA, each after the answer to the one before."""
    PIPELINED = "pipelined"
    """MAIL, RCPT and DATA in one packet (RFC 2920), where PIPELINING is offered."""
    BDAT = "bdat"
    """The content by BDAT (RFC 3030), where CHUNKING is offered."""
    AFTER_RSET = "after-rset"
    """After a transaction that the host welcomes, to its postmaster, was reset."""
    SECOND_RECIPIENT = "second-recipient"
    """Behind a recipient that the host welcomes: its postmaster."""
    SECOND_EHLO = "second-ehlo"
    """After EHLO was said again."""
    HELO = "helo"
    """After HELO instead of EHLO."""
    NO_HELLO = "no-hello"
    """Without HELO or EHLO."""
    STARTTLS = "starttls"
    """Through TLS, where it is offered; any certificate will do."""
    REFUSED_AUTH = "refused-auth"
    """After an AUTH that was begun and called off. No password is ever guessed."""
    XCLIENT = "xclient"
    """After XCLIENT ADDR=127.0.0.1: as if a proxy of the host's had said so (Postfix XCLIENT_README)."""
    PROXY_V1 = "proxy-v1"
    """Behind a PROXY header in text that says 127.0.0.1 calls (haproxy's proxy-protocol.txt)."""
    PROXY_V2 = "proxy-v2"
    """The same in octets."""
    SMUGGLED = "smuggled"
    """Hidden in a mail to the host's postmaster, behind an end of data that is none (CVE-2023-51764 and its like)."""


class Right(enum.StrEnum):
    """The right answer to a case. Whatever is accepted, nothing may arrive at the third party."""

    REFUSED = "refused"
    LOCAL = "local"
    """It may be accepted: a mailbox of the host's own (RFC 5321 4.5.1 even asks for `<postmaster>`)."""


class Names(msgspec.Struct, frozen=True):
    """What the placeholders stand for.

    The target's address stands without brackets, as a literal has it inside them ("192.0.2.1", "IPv6:2001:db8::1").
    `third_local` carries the token of the case; `tester_local` is whom the tester is reached at.
    """

    target_domain: str
    target_name: str
    target_address: str
    third_local: str
    third_domain: str
    tester_local: str
    tester_domain: str
    tester_name: str

    @property
    def third_party(self) -> str:
        """The third party's mailbox."""
        return f"{self.third_local}@{self.third_domain}"

    @property
    def third_party_upper(self) -> str:
        """The third party's mailbox in capitals; a token survives that."""
        return self.third_party.upper()

    @property
    def third_domain_encoded(self) -> str:
        """The third party's domain as Exchange encapsulates it: "+2E" for a dot."""
        return self.third_domain.replace(".", "+2E")

    @property
    def third_domain_wide(self) -> str:
        """The third party's domain in full-width letters: IDNA maps them to the plain ones (UTS #46)."""
        return self.third_domain.translate(_FULL_WIDTH)

    @property
    def tester(self) -> str:
        """The tester's own mailbox."""
        return f"{self.tester_local}@{self.tester_domain}"

    def fill(self, text: str) -> str:
        """`text` with its placeholders filled. AttributeError for one that there isn't."""
        return _placeholder(lambda found: str(getattr(self, found.group(1))), text)


class Case(msgspec.Struct, frozen=True):
    """One row. `reverse_path` and `forward_path` stand as they follow "MAIL FROM:" and "RCPT TO:"; `parameters` follow MAIL.

    `hello` is the name said in EHLO. `ending` is what a SMUGGLED case takes for the end of data. `notice` marks a case
    whose relaying is a notice that the host sends to its reverse-path (backscatter). `offered` is the extension without
    which the case can't be said.
    """

    number: int
    name: str
    reverse_path: str
    forward_path: str
    hello: str
    way: Way
    history: str
    right: Right
    parameters: str = ""
    ending: str = ""
    notice: bool = False
    offered: str = ""

    @property
    def has_own_session(self) -> bool:
        """It can't share a session with others: what it says first, or last, would change theirs."""
        return self.way in _OWN_SESSION or self.hello != TESTER_HELLO

    @property
    def is_odd_before_rcpt(self) -> bool:
        """What it says before RCPT is already what makes it a case."""
        return self.has_own_session or self.reverse_path != _TESTER or bool(self.parameters)

    @property
    def has_bare_line_feed(self) -> bool:
        """What a SMUGGLED case takes for the end of data has an LF without its CR."""
        return "\n" in self.ending.replace("\r\n", "")

    @property
    def names_third_party_plainly(self) -> bool:
        """Its recipient is the third party as anybody would write it."""
        return self.forward_path == _THIRD_PARTY

    @property
    def may_be_local(self) -> bool:
        """Read to the letter (RFC 5321 2.3.11) its recipient is a mailbox of the host's own, with an odd name."""
        return self.forward_path.endswith(_OWN_DOMAINS) and not self.names_third_party_plainly

    @property
    def may_forward(self) -> bool:
        """Its recipient may be a mailbox of the host's own, or an alias that forwards to whom the local part names."""
        return self.right is Right.LOCAL and self.may_be_local and "{third_domain" in self.forward_path

    def local_part(self, names: Names) -> str:
        """The local part of its forward-path: all before the last @, behind a source route."""
        path = names.fill(self.forward_path).strip("<> ")
        if path.startswith("@"):
            path = path.partition(":")[2]
        return path.rpartition("@")[0] or path

    @property
    def ends_at_rcpt(self) -> bool:
        """A mailbox of the host's own that carries no token: once it is accepted, no content could tell more."""
        return self.right is Right.LOCAL and "{third" not in self.forward_path and not self.notice

    def mail_line(self, names: Names) -> bytes:
        """The MAIL command, without its CRLF."""
        return f"MAIL FROM:{names.fill(self.reverse_path)}{names.fill(self.parameters)}".encode()

    def rcpt_line(self, names: Names) -> bytes:
        """The RCPT command, without its CRLF."""
        return f"RCPT TO:{names.fill(self.forward_path)}".encode()


TESTER_HELLO = "{tester_name}"
_TESTER = "<{tester}>"
_THIRD_PARTY = "<{third_party}>"
_OWN_DOMAINS = ("@{target_domain}>", "@{target_name}>", "@[{target_address}]>", "@localhost>", "@[127.0.0.1]>")
_OWN_SESSION = frozenset(
    {
        Way.HELO,
        Way.NO_HELLO,
        Way.STARTTLS,
        Way.XCLIENT,
        Way.PROXY_V1,
        Way.PROXY_V2,
        Way.SMUGGLED,
        Way.REFUSED_AUTH,
        Way.SECOND_EHLO,
    }
)


def _sender(number: int, name: str, reverse_path: str, history: str, parameters: str = "", offered: str = "") -> Case:
    """A case of what MAIL says."""
    return Case(
        number,
        name,
        reverse_path,
        _THIRD_PARTY,
        TESTER_HELLO,
        Way.SEPARATE,
        history,
        Right.REFUSED,
        parameters,
        offered=offered,
    )


def _recipient(number: int, name: str, forward_path: str, history: str, right: Right = Right.REFUSED) -> Case:
    """A case of what RCPT says."""
    return Case(number, name, _TESTER, forward_path, TESTER_HELLO, Way.SEPARATE, history, right)


def _hello(number: int, name: str, hello: str, history: str) -> Case:
    """A case of what EHLO says."""
    return Case(number, name, _TESTER, _THIRD_PARTY, hello, Way.SEPARATE, history, Right.REFUSED)


def _way(number: int, name: str, way: Way, history: str, offered: str = "") -> Case:
    """A case of how it is said."""
    return Case(number, name, _TESTER, _THIRD_PARTY, TESTER_HELLO, way, history, Right.REFUSED, offered=offered)


def _smuggled(number: int, name: str, ending: str, history: str) -> Case:
    """A case behind a false end of data."""
    return Case(
        number,
        name,
        _TESTER,
        _THIRD_PARTY,
        TESTER_HELLO,
        Way.SMUGGLED,
        history,
        Right.REFUSED,
        ending=ending,
    )


_ALL_TESTERS = "every tester's first case; sendmail before 8.9 relayed for anyone, and so does any server whose networks are too wide"
_PERCENT = "sendmail with FEATURE(relay_local_from) or %-routing on, Postfix with allow_percent_hack and loose checks"
_FORWARDER = "aliases and mailing lists that forward to whom the local part names: user=domain, as VERP writes it; else a mailbox"
_SRS = "forwarders that undo the Sender Rewriting Scheme without checking its signature: a mailbox, or an open relay"
_BANG = "sendmail and smail with UUCP routing; Postfix with swap_bangpath and loose checks"
_ROUTE = "servers that follow the routes of RFC 821: sendmail before 8.9, Exchange 5.5, old Lotus and Novell gateways"
_DOUBLE_AT = "Exchange 5.5 and Lotus Domino, which looked at the last domain and delivered to the first"
_QUOTED = "Lotus Domino 5, IMail, old Exchange: checked the domain, found none, then read the quoted text as an address"
_SPELT = "servers whose check and whose routing read an address by different rules"
_SMUGGLING = "Postfix, Exim, sendmail before 2024 (CVE-2023-51764, -51765, -51766)"

CASES: tuple[Case, ...] = (
    # Who sends
    _sender(101, "plain third party", _TESTER, _ALL_TESTERS),
    _sender(102, "null sender", "<>", "servers that wave notices through; nmap, abuse.net, ORDB"),
    _sender(103, "sender in the target's domain", "<postmaster@{target_domain}>", "sendmail's relay_local_from, Exchange 5.5, IMail: trusted the sender's word"),
    _sender(104, "sender at the target's host name", "<postmaster@{target_name}>", "the same, by host name; nmap, abuse.net"),
    _sender(105, "sender at the target's address literal", "<postmaster@[{target_address}]>", "the same, by literal; nmap, abuse.net"),
    _sender(106, "sender without a domain", "<postmaster>", "servers that append their own domain, then take it for local; abuse.net, ORDB"),
    _sender(107, "sender at localhost", "<postmaster@localhost>", "servers that take localhost for themselves; DSBL"),
    _sender(108, "sender at [127.0.0.1]", "<postmaster@[127.0.0.1]>", "the same, as a literal; DSBL"),
    _sender(109, "sender is the recipient", "<{third_party}>", "pop-before-smtp look-ups that asked for the sender only"),
    _sender(110, "sender quoted", '<"postmaster@{target_domain}">', "servers that read the quoted text as a local address"),
    _sender(111, "sender with a bang path", "<{target_domain}!postmaster>", "servers that took the path's first host for the sender's domain; DSBL"),
    _sender(112, "sender by percent hack", "<{tester_local}%{tester_domain}@{target_domain}>", "servers that trusted the last domain of the sender"),
    _sender(113, "sender behind a source route", "<@{target_domain}:{tester}>", "servers that trusted the route's first host"),
    _sender(114, "sender without brackets", "{tester}", "servers whose parser failed open; DSBL"),
    _sender(115, "sender with SMTPUTF8", "<pösthaus@{target_domain}>", "servers that skip their checks for what isn't ASCII (RFC 6531)", " SMTPUTF8", offered="SMTPUTF8"),
    _sender(116, "sender in the target's domain, upper case", "<POSTMASTER@{target_domain}>", "tables of local senders compared without regard to what surrounds them"),
    _sender(117, "submitter claimed by AUTH=", _TESTER, "servers that believe the AUTH parameter of MAIL from anyone (RFC 4954 5)", " AUTH=postmaster@{target_domain}", offered="AUTH"),
    # Percent hack
    _recipient(201, "percent hack at the target's domain", "<{third_local}%{third_domain}@{target_domain}>", _PERCENT),
    _recipient(202, "percent hack at the target's host name", "<{third_local}%{third_domain}@{target_name}>", _PERCENT),
    _recipient(203, "percent hack at the target's literal", "<{third_local}%{third_domain}@[{target_address}]>", _PERCENT),
    _recipient(204, "percent hack without a domain", "<{third_local}%{third_domain}>", _PERCENT),
    _recipient(205, "percent hack, quoted", '<"{third_local}%{third_domain}">', "OpenSMTPD once gave testers a false alarm here; Lotus Domino truly relayed"),
    _recipient(206, "percent hack, quoted, at the target's domain", '<"{third_local}%{third_domain}"@{target_domain}>', _PERCENT),
    _recipient(207, "percent hack, double", "<{third_local}%{third_domain}%{target_name}@{target_domain}>", "servers that check after taking off one layer"),
    _recipient(208, "percent hack at localhost", "<{third_local}%{third_domain}@localhost>", _PERCENT),
    _recipient(209, "percent hack at [127.0.0.1]", "<{third_local}%{third_domain}@[127.0.0.1]>", _PERCENT),
    _recipient(210, "percent hack behind a source route", "<@{target_domain}:{third_local}%{third_domain}@{target_name}>", _PERCENT),
    _recipient(211, "equals sign at the target's domain", "<{third_local}={third_domain}@{target_domain}>", _FORWARDER, Right.LOCAL),
    _recipient(212, "SRS without its check, at the target's domain", "<SRS0=AAAA=AA={third_domain}={third_local}@{target_domain}>", _SRS, Right.LOCAL),
    _recipient(213, "plus sign at the target's domain", "<{third_local}+{third_domain}@{target_domain}>", _FORWARDER, Right.LOCAL),
    _recipient(214, "encapsulated, at the target's domain", "<IMCEASMTP-{third_local}+40{third_domain_encoded}@{target_domain}>", "Exchange 5.5, which took an encapsulated address (IMCEA) apart and relayed to what was inside (CVE-1999-0682)", Right.LOCAL),
    # Bang path
    _recipient(301, "bang path", "<{third_domain}!{third_local}>", _BANG),
    _recipient(302, "bang path at the target's domain", "<{third_domain}!{third_local}@{target_domain}>", _BANG),
    _recipient(303, "bang path at the target's host name", "<{third_domain}!{third_local}@{target_name}>", _BANG),
    _recipient(304, "bang path at the target's literal", "<{third_domain}!{third_local}@[{target_address}]>", _BANG),
    _recipient(305, "bang path through the target's domain", "<{target_domain}!{third_domain}!{third_local}>", _BANG),
    _recipient(306, "bang path through the target to an address", "<{target_domain}!{third_party}>", _BANG),
    _recipient(307, "bang path, quoted", '<"{third_domain}!{third_local}">', _BANG),
    _recipient(308, "bang path, quoted, at the target's domain", '<"{third_domain}!{third_local}"@{target_domain}>', _BANG),
    # Source routes, two @, colon and semicolon
    _recipient(401, "source route by the target's domain", "<@{target_domain}:{third_party}>", _ROUTE),
    _recipient(402, "source route by the target's host name", "<@{target_name}:{third_party}>", _ROUTE),
    _recipient(403, "source route by the target's literal", "<@[{target_address}]:{third_party}>", _ROUTE),
    _recipient(404, "source route of two hosts", "<@{target_domain},@{third_domain}:{third_party}>", _ROUTE),
    _recipient(405, "source route by localhost", "<@localhost:{third_party}>", _ROUTE),
    _recipient(406, "user@third@target's domain", "<{third_party}@{target_domain}>", _DOUBLE_AT),
    _recipient(407, "user@third@target's host name", "<{third_party}@{target_name}>", _DOUBLE_AT),
    _recipient(408, "user@third@target's literal", "<{third_party}@[{target_address}]>", _DOUBLE_AT),
    _recipient(409, "user@third@", "<{third_party}@>", "OpenSMTPD once gave testers a false alarm here"),
    _recipient(410, "user@target@third", "<{third_local}@{target_domain}@{third_domain}>", "servers that checked the first domain and delivered to the last"),
    _recipient(411, "colon form", "<{target_domain}:{third_party}>", "DECnet and X.400 gateways that read node:user"),
    _recipient(412, "semicolon form", "<{third_party};postmaster@{target_domain}>", "gateways that split lists at semicolons and checked one of the parts"),
    _recipient(413, "comma form", "<postmaster@{target_domain},{third_party}>", "servers that checked the first of a list, and delivered to all"),
    # Spelling
    _recipient(501, "recipient quoted", '<"{third_party}">', _QUOTED),
    _recipient(502, "recipient quoted, at the target's domain", '<"{third_party}"@{target_domain}>', _QUOTED),
    _recipient(503, "recipient quoted, at the target's host name", '<"{third_party}"@{target_name}>', _QUOTED),
    _recipient(504, "recipient quoted, at the target's literal", '<"{third_party}"@[{target_address}]>', _QUOTED),
    _recipient(505, "recipient without brackets", "{third_party}", _SPELT),
    _recipient(506, "space before the recipient", " <{third_party}>", _SPELT),
    _recipient(507, "spaces inside the brackets", "< {third_party} >", _SPELT),
    _recipient(508, "comment in the recipient", "<{third_local}(postmaster@{target_domain})@{third_domain}>", _SPELT),
    _recipient(509, "name before the recipient", '"postmaster@{target_domain}" <{third_party}>', _SPELT),
    _recipient(510, "trailing dot", "<{third_party}.>", "servers whose table of refused domains had no dot"),
    _recipient(511, "upper case", "<{third_party_upper}>", _SPELT),
    _recipient(512, "double brackets", "<<{third_party}>>", _SPELT),
    _recipient(513, "NUL in the recipient", "<{third_party}\0@{target_domain}>", "servers that check a whole string and use a C string"),
    _recipient(514, "tab in the recipient", "<{third_party}\t@{target_domain}>", _SPELT),
    _recipient(515, "NUL between recipient and target", "<{third_local}@{target_domain}\0@{third_domain}>", "the other way round"),
    Case(516, "recipient with SMTPUTF8", _TESTER, "<{third_local}@{third_domain}>", TESTER_HELLO, Way.SEPARATE, "servers that skip their checks for mail by RFC 6531", Right.REFUSED, " SMTPUTF8", offered="SMTPUTF8"),
    Case(517, "percent hack with SMTPUTF8", _TESTER, "<{third_local}％{third_domain}@{target_domain}>", TESTER_HELLO, Way.SEPARATE, "servers that make a full-width % plain after their checks (NFKC); else a local part like any other", Right.LOCAL, " SMTPUTF8", offered="SMTPUTF8"),
    _recipient(518, "UTF-8 without SMTPUTF8", "<{third_local}％{third_domain}@{target_domain}>", "the same, unasked", Right.LOCAL),
    Case(519, "internationalised domain, full-width", _TESTER, "<{third_local}@{third_domain_wide}>", TESTER_HELLO, Way.SEPARATE, "servers that look a domain up in their tables as it is written, and route it as IDNA maps it", Right.REFUSED, " SMTPUTF8", offered="SMTPUTF8"),
    # Mailboxes of the host's own
    _recipient(601, "postmaster without a domain", "<postmaster>", "to be accepted; gateways that passed it on to a domain of the sender's", Right.LOCAL),
    _recipient(602, "postmaster at localhost", "<postmaster@localhost>", "an address of the host, or of nobody", Right.LOCAL),
    _recipient(603, "postmaster at [127.0.0.1]", "<postmaster@[127.0.0.1]>", "the same", Right.LOCAL),
    _recipient(604, "postmaster at the target's literal", "<postmaster@[{target_address}]>", "to be accepted, if anything", Right.LOCAL),
    _recipient(605, "third party's local part without a domain", "<{third_local}>", "servers that append the sender's domain", Right.LOCAL),
    Case(606, "notice to a third party", "<{third_party}>", "<no-such-user-{tester_local}@{target_domain}>", TESTER_HELLO, Way.SEPARATE, "servers that accept for unknown users, then send a notice with the whole mail to whom it names as its sender", Right.LOCAL, notice=True),
    # Who the client says it is
    _hello(701, "EHLO as the target's host name", "{target_name}", "servers that trust whoever bears their own name"),
    _hello(702, "EHLO as the target's domain", "{target_domain}", "the same, by domain"),
    _hello(703, "EHLO as localhost", "localhost", "the same; many rules for localhost ask for the name"),
    _hello(704, "EHLO as the target's address", "[{target_address}]", "the same, by address"),
    _hello(705, "EHLO as [127.0.0.1]", "[127.0.0.1]", "the same, by loopback"),
    # How it is said
    _way(801, "HELO instead of EHLO", Way.HELO, "gateways with a second, older code path"),
    _way(802, "without HELO", Way.NO_HELLO, "servers whose rules begin at HELO"),
    _way(803, "in one pipelined packet", Way.PIPELINED, "servers and filters that answer DATA before they look at RCPT", offered="PIPELINING"),
    _way(804, "by BDAT", Way.BDAT, "servers that check at DATA (RFC 3030)", offered="CHUNKING"),
    _way(805, "after RSET", Way.AFTER_RSET, "servers that keep a permission from the transaction before"),
    _way(806, "as the second recipient", Way.SECOND_RECIPIENT, "servers that check the first recipient only"),
    _way(807, "after a second EHLO", Way.SECOND_EHLO, "servers that keep state over EHLO, or lose it"),
    _way(808, "after STARTTLS", Way.STARTTLS, "servers that relay for every TLS client, or for any certificate", offered="STARTTLS"),
    _way(809, "after refused AUTH", Way.REFUSED_AUTH, "servers that take the attempt for the success; no password is guessed"),
    _way(810, "XCLIENT from a stranger", Way.XCLIENT, "Postfix with smtpd_authorized_xclient_hosts too wide"),
    _way(811, "PROXY header from a stranger", Way.PROXY_V1, "any server that takes PROXY from everyone: the stranger says which address it has"),
    _way(812, "PROXY header from a stranger, binary", Way.PROXY_V2, "the same, version 2"),
    # Behind an end of data that is none
    _smuggled(901, "smuggled behind LF . LF", "\n.\n", _SMUGGLING),
    _smuggled(902, "smuggled behind LF . CRLF", "\n.\r\n", _SMUGGLING),
    _smuggled(903, "smuggled behind CRLF . LF", "\r\n.\n", _SMUGGLING),
    _smuggled(904, "smuggled behind CR . CR", "\r.\r", "gateways that take CR for the end of a line"),
    _smuggled(905, "smuggled behind CRLF . CR", "\r\n.\r", "the same"),
    _smuggled(906, "smuggled behind CRLF NUL . CRLF", "\r\n\0.\r\n", "gateways that drop NULs"),
)  # fmt: skip
"""All cases, in the order of the report."""
