"""The files that a configuration names."""

from pathlib import Path

import pytest

from posthouse.config import ConfigError, check_files, load_text, read_password, read_recipients


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


def test_a_missing_certificate_is_named_with_its_key(tmp_path):
    listener = '[[listener]]\naddress = "127.0.0.1:25"\ntls = { certificate = "cert.pem", key = "key.pem" }\n'
    config = load_text(listener, tmp_path / "posthouse.toml")
    with pytest.raises(ConfigError, match=r"\[\[listener\]\] tls certificate: .*cert.pem cannot be read"):
        check_files(config)
    (tmp_path / "cert.pem").touch()
    (tmp_path / "key.pem").touch()
    check_files(config)
    assert Path(config.listeners[0].tls.key) == tmp_path / "key.pem"
