import contextlib
import ssl
from pathlib import Path

import pytest
import trustme

from posthouse.net.tls import TlsError, TlsLayer, client_context, server_context


class Files:
    def __init__(self, directory: Path, *names: str) -> None:
        self.ca = trustme.CA()
        issued = self.ca.issue_cert(*(names or ("mx.example.org",)))
        self.certificate, self.key, self.ca_file = directory / "cert.pem", directory / "key.pem", directory / "ca.pem"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.key))
        self.ca.cert_pem.write_to_path(str(self.ca_file))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def pair(files: Files, *, verify: bool = False, name: str = "mx.example.org") -> tuple[TlsLayer, TlsLayer]:
    server = TlsLayer(server_context(files.certificate, files.key), server_side=True)
    ca_file = files.ca_file if verify else None
    client = TlsLayer(client_context(verify=verify, ca_file=ca_file), server_side=False, server_name=name)
    return client, server


def shake_hands(client: TlsLayer, server: TlsLayer, step: int = 1 << 20) -> None:
    client.start()
    server.start()
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            data = one.data_to_send()
            for i in range(0, len(data), step):
                assert other.receive(data[i : i + step]) == b""


def test_both_sides_speak_once_the_handshake_is_done(files: Files) -> None:
    client, server = pair(files)
    assert client.description == ""
    shake_hands(client, server)
    assert client.is_handshake_done
    assert server.is_handshake_done
    assert client.description == server.description
    assert server.description.startswith("TLSv1.3 TLS_")
    client.encrypt(b"EHLO client.example.org\r\n")
    assert server.receive(client.data_to_send()) == b"EHLO client.example.org\r\n"
    server.encrypt(b"250 OK\r\n")
    assert client.receive(server.data_to_send()) == b"250 OK\r\n"


def test_a_handshake_may_arrive_octet_by_octet(files: Files) -> None:
    client, server = pair(files)
    shake_hands(client, server, step=1)
    assert client.is_handshake_done
    assert server.is_handshake_done


def test_large_plaintext_passes_whole(files: Files) -> None:
    client, server = pair(files)
    shake_hands(client, server)
    content = bytes(range(256)) * 4000
    client.encrypt(content)
    assert server.receive(client.data_to_send()) == content


def test_plaintext_given_early_waits_for_the_handshake(files: Files) -> None:
    client, server = pair(files)
    client.start()
    server.start()
    server.encrypt(b"220 mx.example.org ESMTP\r\n")
    heard = b""
    for _ in range(4):
        server.receive(client.data_to_send())
        heard += client.receive(server.data_to_send())
    assert heard == b"220 mx.example.org ESMTP\r\n"


def test_nothing_after_close_notify_is_plaintext(files: Files) -> None:
    client, server = pair(files)
    shake_hands(client, server)
    client.encrypt(b"BDAT 1000\r\nabc")
    client.close()
    flight = client.data_to_send()
    assert server.receive(flight + b"MAIL FROM:<>\r\n") == b"BDAT 1000\r\nabc"
    assert server.is_closed
    assert server.receive(b"RCPT TO:<victim@example.org>\r\n") == b""
    assert server.receive(flight) == b""


def test_octets_that_are_not_tls_raise_a_sentence(files: Files) -> None:
    client, _ = pair(files)
    client.start()
    with pytest.raises(TlsError, match="handshake failed"):
        client.receive(b"220 mx.example.org ESMTP\r\n")


def test_a_damaged_record_ends_the_connection(files: Files) -> None:
    client, server = pair(files)
    shake_hands(client, server)
    client.encrypt(b"MAIL FROM:<>\r\n")
    record = bytearray(client.data_to_send())
    record[-1] ^= 1
    with pytest.raises(TlsError, match="broke"):
        server.receive(bytes(record))
    assert server.data_to_send(), "the peer is told by an alert"


def test_a_verifying_client_refuses_another_name(files: Files) -> None:
    client, server = pair(files, verify=True, name="mx.example.net")
    client.start()
    server.start()
    server.receive(client.data_to_send())
    with pytest.raises(TlsError, match=r"mx\.example\.net"):
        client.receive(server.data_to_send())
    with pytest.raises(TlsError):
        server.receive(client.data_to_send())


def test_a_verifying_client_accepts_its_authority(files: Files) -> None:
    client, server = pair(files, verify=True)
    shake_hands(client, server)
    assert client.is_handshake_done


def test_a_verifying_client_needs_a_name(files: Files) -> None:
    with pytest.raises(TlsError):
        TlsLayer(client_context(verify=True), server_side=False)


def test_an_overlong_name_is_a_named_error(files: Files) -> None:
    with pytest.raises(TlsError):
        TlsLayer(client_context(verify=False), server_side=False, server_name="a" * 70 + ".example.org")


def test_versions_before_1_2_are_refused(files: Files) -> None:
    server = TlsLayer(server_context(files.certificate, files.key), server_side=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSVersion"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    client = TlsLayer(context, server_side=False)
    client.start()
    with pytest.raises(TlsError):
        server.receive(client.data_to_send())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_one_listener_is_not_resumed_at_another(files: Files, version: ssl.TLSVersion) -> None:
    first, second = (server_context(files.certificate, files.key) for _ in range(2))
    context = client_context(verify=False)
    context.minimum_version = context.maximum_version = version

    def connect(server_side: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLObject:
        server = TlsLayer(server_side, server_side=True)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="mx.example.org", session=session)
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            server.receive(outgoing.read())
            incoming.write(server.data_to_send())
        return client

    session = connect(first, None).session
    assert connect(second, session).session_reused is False


def test_unusable_files_are_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"missing\.pem does not exist"):
        server_context(tmp_path / "missing.pem", files.key)
    other = Files(tmp_path)
    with pytest.raises(TlsError, match="cannot be used together"):
        server_context(files.certificate, other.key)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    with pytest.raises(TlsError, match=r"garbage\.pem"):
        server_context(garbage, files.key)
    with pytest.raises(TlsError, match=r"garbage\.pem"):
        client_context(verify=True, ca_file=garbage)
