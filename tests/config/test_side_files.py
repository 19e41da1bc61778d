"""The files that a configuration names."""

import pytest
import trustme

from posthouse.config import ConfigError, check_files, find_exposed, load_config, read_password, read_recipients


def test_recipients_are_one_a_line_with_remarks(tmp_path):
    file = tmp_path / "recipients.txt"
    file.write_text("# who is here\nAnna@Example.org\n\n  bob@bücher.example  # the new one\n@whole.example\nroot\n")
    assert read_recipients(file) == {"anna@example.org", "bob@xn--bcher-kva.example", "@whole.example", "root"}


@pytest.mark.parametrize(
    ("line", "words"),
    [("a..b", "misplaced dot"), ("a@b c", "not one"), ("a@", "domain is missing")],
)
def test_a_wrong_recipient_is_named_with_its_line(tmp_path, line, words):
    file = tmp_path / "recipients.txt"
    file.write_text(f"a@example.org\n{line}\n")
    with pytest.raises(ConfigError, match=rf"recipients.txt:2: .*({words})"):
        read_recipients(file)


def test_a_password_is_the_first_line(tmp_path):
    file = tmp_path / "password"
    file.write_bytes("geheim wört\r\nsecond\n".encode())
    assert read_password(file) == "geheim wört"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="first line is empty"):
        read_password(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(tmp_path / "none")


LISTENER = '[[listener]]\naddress = "127.0.0.1:25"\ntls = { certificate = "cert.pem", key = "key.pem" }\n'
LOGIN = '[[route]]\ndomain = "*"\nto = "smtps://smart.example"\nlogin = { user = "me", password_file = "secret" }\n'


@pytest.fixture
def configured(tmp_path):
    def configured(toml):
        path = tmp_path / "posthouse.toml"
        path.write_text(f"workers = 1\n{toml}")
        return load_config(path)

    return configured


def test_a_certificate_that_cannot_be_used_is_named_with_its_place(tmp_path, configured):
    config = configured(LISTENER)
    place = rf"{tmp_path}/posthouse.toml:4: \[\[listener\]\] tls: "
    with pytest.raises(ConfigError, match=rf"{place}.*cert.pem cannot be read \(No such file"):
        check_files(config)
    (tmp_path / "cert.pem").write_text("not one\n")
    with pytest.raises(ConfigError, match=rf"{place}.*key.pem cannot be read"):
        check_files(config)
    (tmp_path / "key.pem").write_text("not one\n")
    with pytest.raises(ConfigError, match=rf"{place}.*cert.pem holds no certificate in PEM form"):
        check_files(config)
    blob = trustme.CA().issue_cert("localhost")
    (tmp_path / "cert.pem").write_bytes(blob.cert_chain_pems[0].bytes())
    with pytest.raises(ConfigError, match=rf"{place}.*key.pem holds no private key in PEM form"):
        check_files(config)
    (tmp_path / "key.pem").write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    with pytest.raises(ConfigError, match=rf"{place}.*cannot be used together: key values mismatch"):
        check_files(config)
    (tmp_path / "key.pem").write_bytes(blob.private_key_pem.bytes())
    check_files(config)


def test_a_password_and_a_list_that_are_not_there_are_named_with_their_places(tmp_path, configured):
    config = configured(LOGIN)
    with pytest.raises(
        ConfigError, match=r"posthouse.toml:5: \[\[route\]\] login password_file: .*secret cannot be read"
    ):
        check_files(config)
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ConfigError, match="the first line is empty"):
        check_files(config)
    with pytest.raises(ConfigError, match=r"posthouse.toml:3: \[relay\] recipients: .*list cannot be read"):
        check_files(configured('[relay]\nrecipients = "list"\n'))


def test_a_secret_that_everybody_can_read_is_minded(tmp_path, configured):
    config = configured(LOGIN)
    assert find_exposed(config) == []
    (tmp_path / "secret").write_text("geheim\n")
    (tmp_path / "secret").chmod(0o644)
    assert find_exposed(config) == [
        f"{tmp_path}/secret can be read by every user of this machine: chmod o-rwx {tmp_path}/secret"
    ]
    (tmp_path / "secret").chmod(0o640)
    assert find_exposed(config) == []
