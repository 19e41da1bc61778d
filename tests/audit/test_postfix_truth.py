"""What the audit says of a configuration, and what the real smtpd does with it: they agree in every form."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peer_programs import environment, run_client
from postfix_forms import (
    FORMS,
    HEADER_CHECKS,
    STRANGER,
    UNOPENED_FORMS,
    UNOPENED_HEADER_CHECKS,
    Authority,
    Form,
    RealSmtpd,
    lay_out,
    real_smtpds,
)
from posthouse.audit import CannotTell, Finding, Kind, Open, audit
from posthouse.audit.postfix.configuration import Configuration
from posthouse.audit.postfix.oracle import Oracle
from posthouse.audit.postfix.smtpd import Smtpd, Stage
from posthouse.audit.postfix.stranger import OUTSIDE, Stranger
from posthouse.audit.postfix.strangers import strangers
from posthouse.audit.postfix.walk import Walk

pytestmark = pytest.mark.peer
MOST_STRANGERS = 40
UNOPENED = (*UNOPENED_FORMS, *UNOPENED_HEADER_CHECKS)
AUTHORITY = Authority()
form = pytest.mark.parametrize("form", FORMS, ids=[each.name for each in FORMS])


@pytest.fixture(scope="module")
def smtpds() -> Iterator[dict[str, RealSmtpd]]:
    with (
        real_smtpds((*FORMS, *UNOPENED_FORMS)) as running,
        real_smtpds(UNOPENED_HEADER_CHECKS, **HEADER_CHECKS) as more,
    ):
        yield running | more


@pytest.fixture
def postconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked Postfix's programs are found as on a machine that runs it."""
    for name, value in environment("postfix").items():
        monkeypatch.setenv(name, value)


def verdict(finding: Finding) -> str:
    return "open" if isinstance(finding, Open) else "unknown" if isinstance(finding, CannotTell) else "closed"


def as_tested(stranger: Stranger) -> Stranger:
    """The same stranger from the address that he has here."""
    fields = {name: getattr(stranger, name) for name in stranger.__struct_fields__}
    return Stranger(**{**fields, "client": STRANGER, "name": "unknown", "reverse_name": "unknown"})


def one_smtpd(directory: Path) -> Smtpd:
    configuration = Configuration(directory / "main.cf")
    return configuration.smtpd(configuration.doors()[0])


@form
def test_counterexamples_are_real(form: Form, smtpds: dict[str, RealSmtpd], tmp_path: Path, postconf: None) -> None:
    finding = audit(Kind.POSTFIX, lay_out(form, tmp_path / "form", AUTHORITY))
    assert verdict(finding) == form.verdict, finding
    if not isinstance(finding, Open):
        return
    found = finding.counterexample
    if form.says:
        line = (Path(found.file).read_text().splitlines()[found.line - 1]) if found.line else found.file
        assert form.says in line
    stranger = Stranger(
        client=STRANGER,
        hello=found.hello or None,
        reverse_path=found.reverse_path,
        forward_path=found.forward_path,
        is_encrypted=found.over_tls,
        has_certificate="certificate" in found.client,
        recipients=2 if "one-recipient" in form.name else 1,
    )
    claim = b""
    if "PROXY" in found.client:
        claim = b"PROXY TCP4 127.0.0.1 127.0.0.1 1234 25\r\n"
    elif "XCLIENT" in found.client:
        claim = b"XCLIENT ADDR=127.0.0.1"
    assert smtpds[form.name].takes(stranger, claim, data=True)


@form
def test_each_stranger_is_answered_as_foreseen(
    form: Form, smtpds: dict[str, RealSmtpd], tmp_path: Path, postconf: None
) -> None:
    smtpd = one_smtpd(lay_out(form, tmp_path / "form", AUTHORITY))
    if "proxy" in form.name or not smtpd.is_complete():
        return
    everyone = [
        as_tested(one)
        for one in strangers(smtpd, trusts_public_authorities=False)
        if one.client == OUTSIDE and one.name == "unknown"
    ]
    step = max(1, len(everyone) // MOST_STRANGERS)
    has_data = bool(smtpd.lists[Stage.DATA])
    for stranger in everyone[::step]:
        foreseen = Walk(smtpd, stranger, Oracle([])).outcome().is_accepted
        assert smtpds[form.name].takes(stranger, data=has_data) == foreseen, stranger


@pytest.mark.parametrize("form", UNOPENED, ids=[each.name for each in UNOPENED])
def test_a_table_of_a_type_that_is_not_installed_is_not_opened(
    form: Form, smtpds: dict[str, RealSmtpd], tmp_path: Path, postconf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = lay_out(form, tmp_path / "form", AUTHORITY)
    elsewhere = audit(Kind.POSTFIX, directory)
    assert verdict(elsewhere) == ("open" if form.verdict == "open" else "unknown"), elsewhere
    monkeypatch.setattr(Configuration, "is_at_home", property(lambda _: True))
    here = audit(Kind.POSTFIX, directory)
    assert verdict(here) == form.verdict, here
    assert any("not installed" in doubt for doubt in here.doubts) or "skipped" in form.name
    assert smtpds[form.name].takes(Stranger(client=STRANGER), content=True) is (form.verdict == "open")


@pytest.mark.parametrize("name", ["stock", "conditional-value", "class-in-a-table", "hello-by-regexp-file"])
def test_values_are_filled_in_as_postconf_fills_them_in(name: str, tmp_path: Path, postconf: None) -> None:
    form = next(each for each in FORMS if each.name == name)
    directory = lay_out(form, tmp_path / "form", AUTHORITY)
    settings = Configuration(directory / "main.cf").settings
    printed = run_client("postfix", "usr/sbin/postconf", "-c", str(directory), "-x").stdout.decode()
    theirs = dict(line.split(" =", 1) for line in printed.splitlines())
    assert len(theirs) > 500
    for parameter, value in theirs.items():
        if "$" not in value and parameter != "process_id":  # some hold names that stand for a mail's own values
            assert settings.text(parameter).split() == value.split(), parameter
