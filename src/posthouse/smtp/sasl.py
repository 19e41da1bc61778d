"""AUTH exchanges, step by step (RFC 4954, RFC 4616; LOGIN as it is found in the field). Knows no passwords of anyone.

An exchange takes the client's lines and answers each with a Challenge, with Credentials to be verified, or with a SaslError.
"""

import binascii
import re

import msgspec

from posthouse.smtp.command import Auth
from posthouse.smtp.event import Credentials
from posthouse.smtp.reply import Reply, reply

MECHANISMS = frozenset({"PLAIN", "LOGIN"})
"""What this module can do."""

_base64 = re.compile(rb"(?>(?:[A-Za-z0-9+/]{4})*)(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?").fullmatch

CANCELLED = reply(501, "5.7.0", "Authentication cancelled")
NOT_BASE64 = reply(501, "5.5.2", "The response is not base64")
NOT_CREDENTIALS = reply(501, "5.5.2", "The response holds no login and password")


class SaslError(Exception):
    """The exchange has failed; `reply` says why."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(str(answer))
        self.reply = answer


class Challenge(msgspec.Struct, frozen=True):
    """The 334 that asks for the client's next line."""

    reply: Reply


class PlainExchange:
    """PLAIN (RFC 4616): one response with authorization id, login and password."""

    def respond(self, response: bytes | None) -> Challenge | Credentials:
        """Takes the client's response; None when AUTH came without an initial one."""
        if response is None:
            return Challenge(reply(334, "", ""))
        parts = response.split(b"\0")
        if len(parts) != 3:
            raise SaslError(NOT_CREDENTIALS)
        authorization_id, login, password = map(_text, parts)
        return _credentials("PLAIN", login, password, authorization_id)


class LoginExchange:
    """LOGIN: never standardised, but the only mechanism of many devices."""

    def __init__(self) -> None:
        self._login = ""

    def respond(self, response: bytes | None) -> Challenge | Credentials:
        """Takes the client's response; None when AUTH came without an initial one."""
        if response is None:
            return _ASK_LOGIN
        if not self._login:
            self._login = _text(response)
            if not self._login:
                raise SaslError(NOT_CREDENTIALS)
            return _ASK_PASSWORD
        return _credentials("LOGIN", self._login, _text(response), "")


Exchange = PlainExchange | LoginExchange


class Authentication:
    """The AUTH exchange under way."""

    def __init__(self) -> None:
        self._exchange: Exchange = PlainExchange()

    def begin(self, command: Auth) -> Challenge | Credentials:
        """Begins an exchange; SaslError as in `respond`."""
        self._exchange = LoginExchange() if command.mechanism == "LOGIN" else PlainExchange()
        if not command.initial_response:
            return self._exchange.respond(None)
        if command.initial_response == "=":  # an empty one (RFC 4954 4)
            return self._exchange.respond(b"")
        return self.respond(command.initial_response.encode())

    def respond(self, line: bytes) -> Challenge | Credentials:
        """Takes one line of the client. SaslError when it cancels, or says what is no credentials."""
        if line == b"*":
            raise SaslError(CANCELLED)
        if not _base64(line):
            raise SaslError(NOT_BASE64)
        return self._exchange.respond(binascii.a2b_base64(line))


_ASK_LOGIN = Challenge(reply(334, "", "VXNlcm5hbWU6"))  # "Username:"
_ASK_PASSWORD = Challenge(reply(334, "", "UGFzc3dvcmQ6"))  # "Password:"


def _credentials(mechanism: str, login: str, password: str, authorization_id: str) -> Credentials:
    if not login or not password:
        raise SaslError(NOT_CREDENTIALS)
    return Credentials(mechanism, login, password, authorization_id)


def _text(octets: bytes) -> str:
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        raise SaslError(NOT_CREDENTIALS) from error
    if "\0" in text:
        raise SaslError(NOT_CREDENTIALS)
    return text
