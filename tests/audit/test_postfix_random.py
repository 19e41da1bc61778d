"""Restriction lists that nobody would write, made at random: the real smtpd answers each stranger as the audit foresees."""

import os
import random
from pathlib import Path

import pytest

from peer_programs import environment
from postfix_forms import STRANGER, Form, lay_out, real_smtpds
from posthouse.audit import Kind, Open, audit
from posthouse.audit.postfix.configuration import Configuration
from posthouse.audit.postfix.oracle import Oracle
from posthouse.audit.postfix.smtpd import Stage
from posthouse.audit.postfix.stranger import OUTSIDE, Stranger
from posthouse.audit.postfix.strangers import strangers
from posthouse.audit.postfix.walk import Walk

pytestmark = [pytest.mark.peer, pytest.mark.slow]
SEED = int(os.environ.get("POSTHOUSE_AUDIT_SEED", "6"))
FORMS = int(os.environ.get("POSTHOUSE_AUDIT_FORMS", "36"))
STRANGERS = 12

_ACTIONS = (
    "OK", "DUNNO", "REJECT", "550 no", "defer_if_permit", "defer_if_reject", "permit_mynetworks, reject", "one", "two",
    "reject_unauth_destination", "permit_auth_destination", "DISCARD", "PREPEND X-Y: z", "12345", "warn_if_reject reject",
    "nonsense", "hash:/nowhere", "RELAY",
)  # fmt: skip
_KEYS = {
    "client": ("127.0.0.2", "127.0", "unknown", "127.0.0.1", "192.0.2"),
    "helo": ("mail.stranger.example", "stranger.example", "localhost", "example", "[203.0.113.9]"),
    "sender": ("<>", "stranger.example", "someone@", "boss@ours.test", "ours.test", "example"),
    "recipient": (
        "third-party.example",
        "someone@",
        "ours.test",
        "dept.test",
        "example",
        "someone@third-party.example",
    ),
}
_WORDS = (
    "permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination", "defer_unauth_destination",
    "permit_auth_destination", "reject_non_fqdn_sender", "reject_non_fqdn_recipient", "reject_invalid_helo_hostname",
    "reject_non_fqdn_helo_hostname", "reject_unauth_pipelining", "permit_naked_ip_address", "defer_if_reject",
    "defer_if_permit", "warn_if_reject", "warn_if_reject reject", "sleep 0", "one", "two", "permit", "reject", "defer",
    "reject_unlisted_recipient", "reject_plaintext_session", "reject_multi_recipient_bounce", "check_relay_domains",
    "no_such_restriction", "permit_tls_clientcerts", "reject_sender_login_mismatch", "permit_inet_interfaces",
)  # fmt: skip
_WEIGHTS = [
    1 if word in ("permit", "reject", "defer", "no_such_restriction", "defer_if_permit") else 4 for word in _WORDS
]


def table(dice: random.Random, kind: str) -> str:
    keys = dice.sample(_KEYS[kind], dice.randint(1, 3))
    return "inline:{" + ", ".join(f"{{{key}={dice.choice(_ACTIONS)}}}" for key in keys) + "}"


def some(dice: random.Random, most: int, *, inside: bool = False) -> str:
    items = []
    for _ in range(dice.randint(0 if not inside else 1, most)):
        if dice.random() < 0.45:
            kind = dice.choice(tuple(_KEYS))
            items.append(f"check_{kind}_access {table(dice, kind)}")
        else:
            word = dice.choices(_WORDS, _WEIGHTS)[0]
            items.append("permit_mynetworks" if inside and word in ("one", "two") else word)
    return ", ".join(items)


def random_form(dice: random.Random, number: int) -> Form:
    settings = {
        "smtpd_restriction_classes": "one, two",
        "one": some(dice, 2, inside=True),
        "two": some(dice, 3, inside=True),
        "smtpd_client_restrictions": some(dice, 2),
        "smtpd_helo_restrictions": some(dice, 1),
        "smtpd_sender_restrictions": some(dice, 2),
        "smtpd_relay_restrictions": some(dice, 4),
        "smtpd_recipient_restrictions": some(dice, 3) + ", permit_mynetworks, reject_unauth_destination" * (number % 2),
        "smtpd_data_restrictions": some(dice, 1),
        "smtpd_delay_reject": dice.choice(("yes", "yes", "no")),
        "smtpd_relay_before_recipient_restrictions": dice.choice(("yes", "no")),
        "relay_domains": dice.choice(
            ("dept.test", "dept.test", "example", "static:all", "!third-party.example, static:x")
        ),
        "mydestination": dice.choice(("ours.test", "ours.test, example", "")),
        "allow_untrusted_routing": dice.choice(("no", "no", "yes")),
        "allow_percent_hack": dice.choice(("yes", "no")),
        "swap_bangpath": dice.choice(("yes", "no")),
        "resolve_dequoted_address": dice.choice(("yes", "yes", "no")),
        "append_at_myorigin": dice.choice(("yes", "yes", "no")),
        "parent_domain_matches_subdomains": dice.choice(("relay_domains,smtpd_access_maps", "")),
        "recipient_delimiter": dice.choice(("", "+")),
    }
    return Form(f"random-{number}", "", settings)


def as_tested(stranger: Stranger) -> Stranger:
    fields = {name: getattr(stranger, name) for name in stranger.__struct_fields__}
    return Stranger(**{**fields, "client": STRANGER})


def test_random_lists_answer_each_stranger_as_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("postfix").items():
        monkeypatch.setenv(name, value)
    dice = random.Random(SEED)
    forms: list[Form] = []
    while len(forms) < FORMS:
        form = random_form(dice, len(forms))
        directory = lay_out(form, tmp_path / f"{len(forms)}")
        configuration = Configuration(directory / "main.cf")
        if configuration.smtpd(configuration.doors()[0]).is_complete():
            forms.append(form)
    wrong, asked, opened = [], 0, 0
    with real_smtpds(forms) as smtpds:
        for number, form in enumerate(forms):
            directory = tmp_path / f"{number}"
            configuration = Configuration(directory / "main.cf")
            smtpd = configuration.smtpd(configuration.doors()[0])
            everyone = [
                as_tested(one)
                for one in strangers(smtpd, trusts_public_authorities=False)
                if one.client == OUTSIDE and one.name == "unknown"
            ]
            for stranger in everyone[:: max(1, len(everyone) // STRANGERS)]:
                if stranger.recipients > 1 and "DISCARD" in str(form.settings):
                    continue  # whom the first recipient discards, the second is not asked about: nothing leaves
                foreseen = Walk(smtpd, stranger, Oracle([])).outcome().is_accepted
                asked += 1
                if smtpds[form.name].takes(stranger, data=bool(smtpd.lists[Stage.DATA])) != foreseen:
                    wrong.append((form.name, foreseen, stranger, form.settings))
            opened += isinstance(audit(Kind.POSTFIX, directory), Open)
    assert not wrong, f"{len(wrong)} of {asked}: {wrong[:3]}"
    assert asked > 5 * FORMS
    assert 0 < opened < FORMS
