"""The options of sendmail(1), as cron, mail(1), mutt, PHP and git send-email give them."""

import enum
from dataclasses import dataclass, field

HELP = """\
Usage: posthouse sendmail [OPTIONS] [RECIPIENT...]

Take a mail from standard input, as sendmail(1) does, and hand it to the running server over its local socket.

  -t            take recipients from To, Cc and Bcc as well; Bcc is taken out
  -i, -oi       a line with a single dot does not end the message
  -f ADDRESS    reverse-path (also -r); <> for none.  [default: the caller at this host]
  -F NAME       full name for a From field that is missing
  -B TYPE       7BIT or 8BITMIME
  -N WHEN       notify: never, or failure, delay and success joined by commas (DSN)
  -R PART       what a notice shall carry: full or hdrs (DSN)
  -V ID         envelope id (DSN)
  -v            show the dialogue
  -bs           speak SMTP on standard input and output
  -bp           show the queue (mailq)
  -bi           do nothing: aliases stand in the configuration (newaliases)
  -q            try all that waits in the queue now
  --config FILE the configuration file

Other options of sendmail(1) are taken and ignored. Exit status as in sysexits.h: 0 the server has the mail on disk,
64 wrong usage, 65 a message that is not one, 67 no such recipient, 69 refused, 75 no server answers or it says
"later", 77 not allowed, 78 wrong configuration. Unless it is 0, nothing was sent."""

_WITH_VALUE = frozenset("ABCFLNORVXbfhopr")
_ATTACHED_VALUE = frozenset("qd")  # -q, -q30m: what follows in the same word, if anything
_FLAGS = frozenset("GIUimntvx")
_NOTIFY = frozenset({"NEVER", "SUCCESS", "FAILURE", "DELAY"})


class UsageFault(Exception):
    """The command line makes no sense; the text says what is wrong with it."""


class Mode(enum.Enum):
    """What to do (-b, -q)."""

    DELIVER = "m"
    SMTP = "s"
    QUEUE = "p"
    ALIASES = "i"
    RETRY = "q"
    HELP = "help"


@dataclass
class Arguments:
    """One command line. `reverse_path` None: nobody was named; "" is the null reverse-path."""

    mode: Mode = Mode.DELIVER
    reverse_path: str | None = None
    full_name: str = ""
    recipients: list[str] = field(default_factory=list)
    reads_recipients: bool = False
    ignores_dots: bool = False
    is_verbose: bool = False
    body: str = ""
    notify: str = ""
    ret: str = ""
    envelope_id: str = ""
    config: str = ""


def parse_arguments(words: list[str]) -> Arguments:
    """Reads a command line; options may stand after recipients, `--` ends them. UsageFault when it makes no sense."""
    given = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            given.recipients += rest
            break
        if word.startswith("--"):
            _long_option(given, word, rest)
        elif word.startswith("-") and len(word) > 1:
            _short_options(given, word[1:], rest)
        else:
            given.recipients.append(word)
    return given


def _long_option(given: Arguments, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    if word == "--help":
        given.mode = Mode.HELP
    elif name == "--config":
        given.config = value if equals else _next(word, rest)
    else:
        raise UsageFault(f"there is no option {word}")


def _short_options(given: Arguments, letters: str, rest: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in _WITH_VALUE:
            _apply(given, letter, letters or _next(f"-{letter}", rest))
            return
        if letter in _ATTACHED_VALUE:
            _apply(given, letter, letters)
            return
        if letter not in _FLAGS:
            raise UsageFault(f"there is no option -{letter}")
        _apply(given, letter, "")


def _next(option: str, rest: list[str]) -> str:
    if not rest:
        raise UsageFault(f"{option} needs a value")
    return rest.pop(0)


def _apply(given: Arguments, letter: str, value: str) -> None:
    """One option; those that mean nothing to us fall through."""
    match letter:
        case "t":
            given.reads_recipients = True
        case "i":
            given.ignores_dots = True
        case "o":
            given.ignores_dots = given.ignores_dots or value == "i"
        case "v":
            given.is_verbose = True
        case "f" | "r":
            given.reverse_path = value.removeprefix("<").removesuffix(">").strip()
        case "F":
            given.full_name = value
        case "I":
            given.mode = Mode.ALIASES
        case "q":
            given.mode = Mode.RETRY
        case "b":
            given.mode = _mode(value)
        case "B" | "N" | "R" | "V":
            _apply_extension(given, letter, value)


def _mode(value: str) -> Mode:
    for mode in (Mode.DELIVER, Mode.SMTP, Mode.QUEUE, Mode.ALIASES):
        if value == mode.value:
            return mode
    if value == "d":
        raise UsageFault("-bd is `posthouse serve`")
    raise UsageFault(f"there is no mode -b{value}")


def _apply_extension(given: Arguments, letter: str, value: str) -> None:
    word = value.upper()
    if letter == "B":
        if word not in ("7BIT", "8BITMIME"):
            raise UsageFault(f"-B is 7BIT or 8BITMIME, not {value!r}")
        given.body = word
    elif letter == "N":
        wanted = word.split(",")
        if not _NOTIFY.issuperset(wanted) or ("NEVER" in wanted and len(wanted) > 1):
            raise UsageFault(f"-N is never, or failure, delay and success joined by commas, not {value!r}")
        given.notify = word
    elif letter == "R":
        if word not in ("FULL", "HDRS"):
            raise UsageFault(f"-R is full or hdrs, not {value!r}")
        given.ret = word
    else:
        if not value.isprintable() or len(value.encode()) > 100:
            raise UsageFault("-V is at most 100 printable characters")
        given.envelope_id = value
