"""Exim's string expansion, as far as what it yields is known without asking anybody (specification, chapter 11).

Variables of the session, `${if`, comparisons, `${sg`, `${lc`, and look-ups in plain files. Everything else is Unclear.
"""

import re
from collections.abc import Callable
from pathlib import Path

from posthouse.audit.crowd import try_network
from posthouse.audit.exim.reading import Configuration, Place, Unclear
from posthouse.audit.exim.session import UNKNOWN, Session, Truth, truth

_NAME = re.compile(r"\w+")
ListMatch = Callable[[str, str, str, Session, Place], Truth]


class Failed(Exception):
    """A forced failure: what asked declines."""


class Errs(Exception):
    """Exim would find an error here and answer with a temporary refusal."""


class Chosen(Exception):
    """The text hangs on what the client writes or the day brings: it can be either way."""


_OF_THE_CONTENT = re.compile(
    r"message_(size|linecount|body\w*|headers\w*)|body_\w+|max_received_linelength|received_count|b?r?l?h(eader)?_\S+"
    r"|tod_\w+|sender_rate\w*|dnslist_\w+|dkim_\w+|spf_\w+|spam_\w+|malware_\w+|mime_\w+|host_lookup_failed|pid"
)


class Expander:
    """Expands for one session at a time. `lists` matches match_domain and its like."""

    def __init__(self, configuration: Configuration, lists: ListMatch) -> None:
        self.configuration = configuration
        self.lists = lists

    def expand(self, text: str, session: Session, place: Place) -> str:
        """The expanded text. Unclear, or Failed when the text says `fail`."""
        if "$" not in text and "\\" not in text:
            return text
        return _Expansion(self, session, place, text).until("")

    def is_true(self, text: str, session: Session, place: Place) -> Truth:
        """The value of `condition = text`. Errs when it is neither true nor false."""
        try:
            value = self.expand(text, session, place).strip().lower()
        except Failed:
            return Truth.NO
        except Chosen:
            return Truth.CHOICE
        if value in ("", "no", "false"):
            return Truth.NO
        if value in ("yes", "true"):
            return Truth.YES
        if re.fullmatch(r"-?\d+", value):
            return truth(int(value) != 0)
        raise Errs


class _Expansion:
    def __init__(self, owner: Expander, session: Session, place: Place, text: str) -> None:
        self.owner, self.session, self.place, self.text = owner, session, place, text
        self.at = 0

    def unclear(self, what: str) -> Unclear:
        return Unclear(self.place, f"{what} is not judged here: {' '.join(self.text.split())[:160]}")

    def until(self, stop: str) -> str:
        """Expands up to an unescaped `stop`, which is consumed; to the end for ""."""
        out = ""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == stop:
                self.at += 1
                return out
            if char == "\\":
                out += self._escape()
            elif char == "$":
                self.at += 1
                out += self._dollar()
            else:
                out += char
                self.at += 1
        if stop:
            raise self.unclear(f'an expansion without its "{stop}"')
        return out

    def _escape(self) -> str:
        if self.text.startswith("\\N", self.at):
            end = self.text.find("\\N", self.at + 2)
            end = len(self.text) if end < 0 else end
            found = self.text[self.at + 2 : end]
            self.at = end + 2
            return found
        found = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        return {"n": "\n", "t": "\t"}.get(found, found)

    def _spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _peek(self, char: str) -> bool:
        self._spaces()
        return self.text.startswith(char, self.at)

    def _braced(self) -> str:
        if not self._peek("{"):
            raise self.unclear("an expansion without a brace")
        self.at += 1
        return self.until("}")

    def _raw(self) -> str:
        """What stands in braces, not expanded."""
        if not self._peek("{"):
            raise self.unclear("an expansion without a brace")
        start, depth = self.at, 0
        while self.at < len(self.text):
            depth += (self.text[self.at] == "{") - (self.text[self.at] == "}")
            self.at += 1
            if not depth:
                return self.text[start + 1 : self.at - 1]
        raise self.unclear("an expansion without its end")

    def _close(self) -> None:
        if not self._peek("}"):
            raise self.unclear("an expansion of this form")
        self.at += 1

    def _dollar(self) -> str:
        if self.text.startswith("{", self.at):
            self.at += 1
            return self._item()
        found = _NAME.match(self.text, self.at)
        if not found:
            raise self.unclear("a lone $")
        self.at = found.end()
        return self._variable(found[0])

    def _item(self) -> str:
        self._spaces()
        found = _NAME.match(self.text, self.at)
        if not found:
            raise self.unclear("an expansion")
        name = found[0]
        self.at = found.end()
        if name == "if":
            return self._if()
        if name == "lookup":
            return self._lookup()
        if name == "sg":
            return self._substitute()
        if self._peek(":"):
            self.at += 1
            return self._operator(name)
        if self._peek("}"):
            self.at += 1
            return self._variable(name)
        raise self.unclear(f"${{{name}")

    def _operator(self, name: str) -> str:
        operators: dict[str, Callable[[str], str]] = {
            "lc": str.lower,
            "uc": str.upper,
            "domain": lambda value: value.rpartition("@")[2],
            "local_part": lambda value: value.rpartition("@")[0],
            "strlen": lambda value: str(len(value)),
            "quote_local_part": str,
            "address": str,
            "rxquote": re.escape,
        }
        value = self.until("}")
        if name == "eval":
            return self._arithmetic(value)
        if name not in operators:
            raise self.unclear(f"${{{name}:")
        return operators[name](value)

    def _arithmetic(self, text: str) -> str:
        found = re.fullmatch(r"\s*(\d+)\s*(?:([-+*/])\s*(\d+)\s*)?", text)
        if not found:
            raise self.unclear("arithmetic of this form")
        first, sign, second = int(found[1]), found[2], int(found[3] or "0")
        if sign == "/" and not second:
            raise Failed
        results = {"+": first + second, "-": first - second, "*": first * second, "/": first // (second or 1)}
        return str(results[sign] if sign else first)

    def _branches(self, held: Truth, default_yes: str = "true") -> str:
        """{yes}{no} after a condition; only the one taken is expanded."""
        if held is Truth.CHOICE:
            raise Chosen
        if self._peek("}"):
            self.at += 1
            return default_yes if held is Truth.YES else ""
        if self._word("fail"):
            self._close()
            if held is Truth.YES:
                return default_yes
            raise Failed
        yes = self._raw()
        no: str | None = ""
        if self._word("fail"):
            no = None
        elif self._peek("{"):
            no = self._raw()
        self._close()
        taken = yes if held is Truth.YES else no
        if taken is None:
            raise Failed
        return self.owner.expand(taken, self.session, self.place)

    def _word(self, word: str) -> bool:
        if self._peek(word):
            self.at += len(word)
            return True
        return False

    def _if(self) -> str:
        return self._branches(self._condition())

    def _condition(self) -> Truth:
        self._spaces()
        if self._peek("!"):
            self.at += 1
            return self._condition().negated()
        found = re.compile(r"def:\w+|[a-z_]+|[<>=]{1,2}").match(self.text, self.at)
        if not found:
            raise self.unclear("a condition")
        name = found[0]
        self.at = found.end()
        if name.startswith("def:"):
            if name in ("def:sender_host_name", "def:tls_in_sni", "def:tls_in_peerdn"):
                return Truth.CHOICE
            return truth(bool(self._variable(name[4:])))
        if name in ("and", "or"):
            return self._several(name)
        if name in ("bool", "bool_lax"):
            value = self._braced().strip().lower()
            return truth(value not in ("", "0", "no", "false"))
        return self._comparison(name)

    def _several(self, name: str) -> Truth:
        self._close_open("{")
        answers = []
        while self._peek("{"):
            self.at += 1
            answers.append(self._condition())
            self._close()
        self._close()
        deciding = Truth.NO if name == "and" else Truth.YES
        if deciding in answers:
            return deciding
        return Truth.CHOICE if Truth.CHOICE in answers else deciding.negated()

    def _close_open(self, char: str) -> None:
        if not self._peek(char):
            raise self.unclear("a condition of this form")
        self.at += 1

    def _comparison(self, name: str) -> Truth:
        if name == "exists":
            return truth(_exists(self._braced().strip(), self))
        if name in ("isip", "isip4", "isip6"):
            return truth(try_network(self._braced()) is not None)
        first = self._braced()
        second = self._raw() if name.startswith("match_") else self._braced()
        if name.startswith("match_"):
            kinds = {
                "match_domain": "domainlist",
                "match_ip": "hostlist",
                "match_address": "addresslist",
                "match_local_part": "localpartlist",
            }
            if name not in kinds:
                raise self.unclear(name)
            return self.owner.lists(kinds[name], second, first, self.session, self.place)
        if name in ("eq", "eqi"):
            return truth(first.lower() == second.lower() if name == "eqi" else first == second)
        if name == "match":
            return truth(_search(second, first, self))
        if name in ("inlist", "inlisti"):
            return truth(first.lower() in [item.strip().lower() for item in second.split(":")])
        if name in ("=", "==", "<", ">", "<=", ">="):
            return truth(_compare(name, first, second, self))
        raise self.unclear(f"the condition {name}")

    def _substitute(self) -> str:
        subject, pattern, replacement = self._braced(), self._braced(), self._raw()
        self._close()
        replacement = re.sub(r"\\?\$\{?(\d)\}?", r"\\g<\1>", replacement.replace("\\\\", "\\"))
        try:
            return re.sub(pattern, replacement, subject)
        except re.error:
            raise self.unclear("a regular expression") from None

    def _lookup(self) -> str:
        """Only single-key look-ups in files of "key: value" lines."""
        if not self._peek("{"):
            raise self.unclear("a look-up by a query")
        key = self._braced()
        self._spaces()
        found = _NAME.match(self.text, self.at)
        kind = found[0] if found else ""
        if kind not in ("lsearch", "nwildlsearch", "wildlsearch", "iplsearch"):
            raise self.unclear(f"a look-up of the kind {kind or self.text[self.at : self.at + 12]}")
        self.at += len(kind)
        value = search_file(self._braced(), key, self.place)
        if value is None:
            return self._branches(Truth.NO, "")
        self._spaces()
        self.text = self.text[: self.at] + self.text[self.at :].replace("$value", value)
        return self._branches(Truth.YES, value)

    def _variable(self, name: str) -> str:
        session = self.session
        known = {
            "sender_host_address": str(session.address),
            "sender_helo_name": session.hello,
            "sender_address": session.reverse_path,
            "sender_address_domain": session.reverse_domain,
            "sender_address_local_part": session.reverse_path.rpartition("@")[0],
            "domain": session.domain,
            "local_part": session.local_part,
            "original_domain": session.domain,
            "original_local_part": session.local_part,
            "authenticated_id": "",
            "sender_host_authenticated": "",
            "authenticated_sender": "",
            "tls_in_cipher": "TLS1.3:TLS_AES_256_GCM_SHA384:256" if session.is_encrypted else "",
            "tls_cipher": "TLS1.3:TLS_AES_256_GCM_SHA384:256" if session.is_encrypted else "",
            "tls_in_cipher_std": "TLS_AES_256_GCM_SHA384" if session.is_encrypted else "",
            "tls_in_peerdn": "",
            "interface_port": "25",
            "received_port": "25",
            "recipients_count": "1",
            "rcpt_count": "1",
            "rcpt_defer_count": "0",
            "rcpt_fail_count": "0",
            "smtp_active_hostname": self._host_name,
            "primary_hostname": self._host_name,
            "qualify_domain": self._host_name,
            "local_part_prefix": "",
            "local_part_suffix": "",
        }
        if name in known:
            return known[name]
        if re.fullmatch(r"acl_[cm]\w+|[0-9]", name):
            value = dict(session.variables).get(name, "")
            if value != UNKNOWN:
                return value
        if _OF_THE_CONTENT.fullmatch(name):
            raise Chosen
        raise self.unclear(f"the variable ${name}")

    @property
    def _host_name(self) -> str:
        found = self.owner.configuration.options.get("primary_hostname")
        return found.text if found else "this-host.example"


def _exists(path: str, expansion: _Expansion) -> bool:
    """On this machine: a configuration is judged where it is in force."""
    try:
        Path(path).stat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        raise expansion.unclear("a file that can't be looked at") from None
    return True


def _search(pattern: str, subject: str, expansion: _Expansion) -> bool:
    try:
        return re.search(pattern, subject) is not None
    except re.error:
        raise expansion.unclear("a regular expression") from None


def _compare(name: str, first: str, second: str, expansion: _Expansion) -> bool:
    try:
        a, b = int(first or "0"), int(second or "0")
    except ValueError:
        raise expansion.unclear("a comparison of what is no number") from None
    return {"=": a == b, "==": a == b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[name]


def search_file(path: str, key: str, place: Place) -> str | None:
    """The value of a key in a file for lsearch; None when it isn't there. Unclear when the file can't be read."""
    try:
        lines = Path(path.strip()).read_text(errors="surrogateescape").splitlines()
    except (OSError, ValueError) as error:
        raise Unclear(place, f"{path.strip()} can't be read: {error}") from None
    for line in lines:
        if line and not line.startswith("#") and not line[0].isspace():
            found = re.match(r'"((?:[^"\\]|\\.)*)"|[^\s:]+', line)
            name = (found[1] or found[0]) if found else ""
            if name.lower() == key.lower():
                return line[found.end() :].lstrip(" \t:").strip() if found else ""
    return None
