"""The replies of a session that wait to be sent, and the refusals among them: counted, slowed, and ended at last with 421."""

from posthouse.smtp import answers
from posthouse.smtp.command import VERBS
from posthouse.smtp.driving import Ending
from posthouse.smtp.event import CommandRefused
from posthouse.smtp.line import BadLine, LineFault
from posthouse.smtp.patience import Patience
from posthouse.smtp.reply import Reply
from posthouse.smtp.settings import ServerSettings

RECORDED_OCTETS = 512
_ENCODED_REPLIES = 256
_encoded: dict[Reply, bytes] = {}
"""Most replies are the same few: looking one up costs a fifth of printing it."""

A_RESPONSE = b"(a response to AUTH)"


class Outbox:
    """What goes to the client. Once `ending` is not NOT_YET nothing more is read from it."""

    __slots__ = ("_is_after_auth", "_replies", "ending", "patience")

    def __init__(self, settings: ServerSettings) -> None:
        self.ending = Ending.NOT_YET
        self.patience = Patience(settings)
        self._replies: list[bytes] = []
        self._is_after_auth = False

    def __bool__(self) -> bool:
        return bool(self._replies)

    def say(self, answer: Reply) -> None:
        """One more reply to send."""
        octets = _encoded.get(answer)
        if octets is None:
            octets = answer.encode()
            if len(_encoded) >= _ENCODED_REPLIES:
                _encoded.clear()
            _encoded[answer] = octets
        self._replies.append(octets)

    def take(self) -> bytes:
        """The replies that are due, once."""
        replies = self._replies
        if not replies:
            return b""
        data = replies[0] if len(replies) == 1 else b"".join(replies)
        replies.clear()
        self.patience.delay = 0.0
        return data

    def refuse(self, line: bytes, refusal: Reply) -> CommandRefused:
        """Refuses a command: an error of the client."""
        if not self.patience.err():
            return self.refuse_and_close(line, answers.TOO_MANY_ERRORS)
        return self.decline(line, refusal)

    def decline(self, line: bytes, refusal: Reply) -> CommandRefused:
        """Refuses a command without counting it as an error."""
        self.say(refusal)
        return CommandRefused(self._record(line), refusal)

    def refuse_line(self, line: BadLine, too_long: Reply) -> CommandRefused:
        """Refuses what cannot be read as a line."""
        if line.fault is LineFault.ENDLESS:
            return self.refuse_and_close(line.head, answers.ENDLESS_LINE)
        return self.refuse(line.head, too_long if line.fault is LineFault.TOO_LONG else answers.BARE_LF_IN_COMMAND)

    def refuse_and_close(self, line: bytes, farewell: Reply) -> CommandRefused:
        """Refuses a command with the last reply of the session."""
        self.close(farewell, Ending.DRAIN)
        return CommandRefused(self._record(line), farewell)

    def note_idle(self, line: bytes) -> CommandRefused | None:
        """A command that does nothing has been answered; too many of them without a message between are errors."""
        return None if self.patience.idle() else self.refuse_and_close(line, answers.TOO_MANY_ERRORS)

    def note_refusal(self, answer: Reply) -> None:
        """A reply from outside was given; 5yz are counted."""
        if answer.code >= 500:
            self.patience.refuse()

    def close(self, farewell: Reply, ending: Ending) -> None:
        """The last reply of the session."""
        self.say(farewell)
        self.ending = ending

    def _record(self, line: bytes) -> bytes:
        """The line as an event may hold it: without what could be a password, in AUTH or behind a refused one."""
        verb = line[:16].partition(b" ")[0].rstrip().upper()
        if verb == b"AUTH":
            self._is_after_auth = True
            return verb
        if self._is_after_auth and verb not in VERBS:
            return A_RESPONSE
        self._is_after_auth = False
        return line[:RECORDED_OCTETS].rstrip()
