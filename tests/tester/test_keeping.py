"""What the tester keeps belongs to the owner of the data directory, whoever came first."""

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from posthouse.policy.networks import NetworkSet
from posthouse.tester.consent import ConsentRules, Method, read_do_not_test
from posthouse.tester.office import Office
from posthouse.tester.receipts import ReceiptStore
from posthouse.tester.token import make_key


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")
def test_what_root_makes_belongs_to_the_owner_of_the_data_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    key = make_key(tmp_path / "tester" / "key")
    ReceiptStore(tmp_path / "tester" / "receipts.db", 1).close()
    rules = ConsentRules(NetworkSet(()), frozenset(), read_do_not_test(()))
    Office(tmp_path / "tester" / "consent.db", lambda: rules, lambda: key).record_proof(
        "a.test", ip_address("9.9.9.9"), Method.DNS
    )
    made = [tmp_path / "tester", *(tmp_path / "tester").iterdir()]
    assert {one.name for one in made} == {"tester", "key", "receipts.db", "consent.db"}
    assert {one.stat().st_uid for one in made} == {12345}
    assert made[0].stat().st_mode & 0o077 == 0


def test_corner_is_made_with_all_around_it_and_closed_to_others(tmp_path: Path) -> None:
    make_key(tmp_path / "state" / "posthouse" / "tester" / "key")
    assert (tmp_path / "state" / "posthouse" / "tester").stat().st_mode & 0o777 == 0o700
