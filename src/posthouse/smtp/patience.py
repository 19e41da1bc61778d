"""How long a client that errs is borne: its errors, its refusals and its idle commands since the last accepted message."""

from posthouse.smtp.settings import ServerSettings

ERROR_SECONDS = 1.0
"""What each error from `errors_slow` on adds to the wait before the answers go out."""


class Patience:
    """Counts; says when to slow down (`delay`, seconds) and when to end it. See `ServerSettings` for the bounds."""

    __slots__ = ("_errors", "_idle", "_refusals", "_settings", "delay", "is_refused_too_often")

    def __init__(self, settings: ServerSettings) -> None:
        self.delay = 0.0
        self._settings = settings
        self._errors = 0
        self._refusals = 0
        self._idle = 0
        self.is_refused_too_often = False
        """The next command is not worth an answer."""

    def renew(self) -> None:
        """A message was accepted."""
        self._errors = self._refusals = self._idle = 0
        self.is_refused_too_often = False

    def err(self) -> bool:
        """One more error: in syntax, order or limits. False when it was the last one borne."""
        self._errors += 1
        if self._errors > self._settings.errors_slow:
            self.delay += ERROR_SECONDS
        return self._errors < self._settings.errors_close

    def refuse(self) -> None:
        """One more 5yz reply from outside."""
        self._refusals += 1
        self.is_refused_too_often = self._refusals >= self._settings.refusals_close

    def idle(self) -> bool:
        """One more command that does nothing; from `idle_commands` on each is an error. False as in `err`."""
        self._idle += 1
        return self._idle <= self._settings.idle_commands or self.err()
