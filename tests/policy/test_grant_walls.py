"""No grant, no relay: each wall around the grant, alone."""

import ast
import copy
import pickle
from pathlib import Path as FilePath

import msgspec
import pytest

import posthouse
from posthouse.mail import grant as grant_module
from posthouse.mail.envelope import Recipient
from posthouse.mail.grant import Grant, GrantKind
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.smtp.address import Path

REASON = Reason(Slug.TRUSTED_NETWORK, "because")
SOURCES = FilePath(posthouse.__file__).parent


def real_grant() -> Grant:
    return restore_grant("relay-domain", "relay-domain", "relay_domains holds example.org")


@pytest.mark.parametrize("seal", [None, object(), True, "seal"])
def test_a_grant_cannot_be_made_without_the_seal(seal: object) -> None:
    with pytest.raises(PermissionError):
        Grant(GrantKind.TRUSTED_NETWORK, REASON, seal)


def test_the_seal_is_given_out_once() -> None:
    with pytest.raises(PermissionError):
        grant_module.take_seal()


def test_a_grant_holds_no_seal_from_which_another_could_be_made() -> None:
    granted = real_grant()
    with pytest.raises(PermissionError):
        Grant(GrantKind.TRUSTED_NETWORK, REASON, granted.seal)
    with pytest.raises(PermissionError):
        msgspec.structs.replace(granted, kind=GrantKind.TRUSTED_NETWORK)


def test_a_grant_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        real_grant().kind = GrantKind.TRUSTED_NETWORK  # type: ignore[misc]


def test_a_grant_cannot_be_read_from_bytes() -> None:
    granted = real_grant()
    with pytest.raises(PermissionError):
        pickle.loads(pickle.dumps(granted))
    with pytest.raises((PermissionError, msgspec.ValidationError)):
        msgspec.json.decode(msgspec.json.encode(granted), type=Grant)


def test_a_copy_is_the_same_grant() -> None:
    assert copy.copy(real_grant()) == real_grant()


def test_a_recipient_cannot_be_without_a_grant() -> None:
    with pytest.raises(TypeError):
        Recipient(Path(b"user", "example.org"))  # type: ignore[call-arg]


def _users_of(name: str) -> set[str]:
    """The modules of ours that mention a name."""
    found = set()
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = {getattr(node, "id", ""), getattr(node, "attr", "")}
            if isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names} | {(node.module or "").rpartition(".")[2]}
            elif isinstance(node, ast.Import):
                names |= {alias.name.rpartition(".")[2] for alias in node.names}
            if name in names:
                found.add(".".join(file.relative_to(SOURCES).with_suffix("").parts))
    return found


def test_only_decide_uses_the_mint() -> None:
    assert _users_of("_issue") == {"policy.decide"}
    assert _users_of("take_seal") == {"policy._issue"}


def test_only_the_mint_calls_the_constructor() -> None:
    callers = set()
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Grant":
                callers.add(".".join(file.relative_to(SOURCES).with_suffix("").parts))
    assert callers == {"policy._issue"}


def test_only_the_spool_restores_grants() -> None:
    assert {user.partition(".")[0] for user in _users_of("restore_grant") - {"policy.decide"}} <= {"spool"}


def test_only_the_relay_sends_notifications_of_our_own() -> None:
    assert {user.partition(".")[0] for user in _users_of("grant_notification") - {"policy.decide"}} <= {"relay"}
