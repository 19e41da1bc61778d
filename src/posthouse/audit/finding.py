"""What an audit answers, and what it rests on. Values only."""

import enum
from pathlib import Path

import msgspec


class Kind(enum.StrEnum):
    """The mail servers whose configurations can be read."""

    POSTFIX = "postfix"
    EXIM = "exim"
    OPENSMTPD = "opensmtpd"
    SENDMAIL = "sendmail"


class AuditError(ValueError):
    """The path holds no configuration of that server; the message is a sentence with the remedy (exit status 2)."""


class Counterexample(msgspec.Struct, frozen=True, kw_only=True):
    """One mail of one stranger that the configuration lets through, and the line that lets it.

    `client` is an address, or words with one ("203.0.113.9, which says XCLIENT ADDR=127.0.0.1"). Paths stand without their
    angle brackets; "" is the null reverse-path. `line` is 0 where a built-in default decides, and `file` then names what
    the default is of. `words` is one sentence for people: what let it through, and what to do.
    """

    client: str
    reverse_path: str
    forward_path: str
    file: str
    line: int
    words: str
    listener: str = ""
    hello: str = ""
    over_tls: bool = False


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """No stranger can relay, as far as the configuration says. `doubts`: what is surely not meant, or hides strangers."""

    rests_on: str
    doubts: tuple[str, ...] = ()


class Open(msgspec.Struct, frozen=True, tag="open"):
    """A stranger can relay: `counterexample` shows it. `others` are further openings, by another line each."""

    counterexample: Counterexample
    rests_on: str
    doubts: tuple[str, ...] = ()
    others: tuple[Counterexample, ...] = ()


class CannotTell(msgspec.Struct, frozen=True, tag="cannot-tell"):
    """The answer hangs on something that could not be read or asked, and nothing else was found open.

    `file` and `line` are the place that stopped the audit (line 0: the file as a whole), `words` says what stands there
    and how to learn the answer. `others` are further such places, as (file, line, words).
    """

    file: str
    line: int
    words: str
    rests_on: str
    doubts: tuple[str, ...] = ()
    others: tuple[tuple[str, int, str], ...] = ()


Finding = Closed | Open | CannotTell
"""`rests_on` of each: what the answer was made from ("postconf 3.10.5 and /etc/postfix/master.cf"), for people."""


def existing(path: Path, *, names: tuple[str, ...] = ()) -> Path:
    """The file that is meant: `path`, or the first of `names` inside it when it is a directory. AuditError otherwise."""
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise AuditError(f"{path} holds no {' or '.join(names) or 'file to read'}; name the configuration file")
    if not path.exists():
        raise AuditError(f"{path} does not exist; name the configuration file or its directory")
    return path
