"""Asking the running server: one JSON line to data_dir/control.sock, one back. Light, for commands that must start fast.

`{"verb": "relay-off", "arguments": {}}` is answered by `{"result": {...}}` or `{"error": "one sentence"}`; `"is_refusal": false`
beside an error says that it is no decision: what was asked for may or may not have happened.
"""

import json
import socket
from pathlib import Path
from typing import Any

from posthouse.net.listen import unix_address


class ServerNotRunning(Exception):
    """No server runs on this data directory; the text says so."""


class ControlError(Exception):
    """The server says no; the text is one sentence."""


class NoAnswer(ControlError):
    """The server can't be asked, or did not answer: what was asked for may or may not have happened."""


class NotAllowed(NoAnswer):
    """The server is closed to this user: it was not asked."""


def ask(data_dir: Path, verb: str, *, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
    """Asks the server on `data_dir` and waits `timeout` seconds for its answer. ServerNotRunning, ControlError, NoAnswer.

    Verbs: status, reload, relay-off, relay-on, relay-status, metrics, and queue-hold, -release, -retry, -reroute, -bounce
    and -delete (`ids`: a list of queue ids as text, or other arguments for every worker).
    """
    path = data_dir / "control.sock"
    request = json.dumps({"verb": verb, "arguments": arguments}) + "\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(timeout)
        _connect(one, path)
        try:
            one.sendall(request.encode())
            with one.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError as error:
            raise NoAnswer(f"the server did not answer {verb} within {timeout:g} s") from error
        except OSError as error:
            raise NoAnswer(f"the server broke off while it was asked: {error.strerror}") from error
    if not line.endswith(b"\n"):
        raise NoAnswer(f"the server ended while it was asked to {verb}")
    answer = json.loads(line)
    if "error" in answer:
        raise (ControlError if answer.get("is_refusal", True) else NoAnswer)(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


def _connect(one: socket.socket, path: Path) -> None:
    try:
        with unix_address(path) as address:
            one.connect(address)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise ServerNotRunning(
            f"no posthouse server is running on {path.parent}: start one with `posthouse serve`"
        ) from error
    except PermissionError as error:
        raise NotAllowed(f"{path} is closed to this user: only root and the server's own user may steer it") from error
    except OSError as error:
        raise NoAnswer(f"can't ask the server at {path}: {error.strerror}") from error
