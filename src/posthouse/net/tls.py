"""TLS under an engine: ciphertext in, plaintext out, by `ssl.MemoryBIO`; no socket and no event loop.

A loop's own `start_tls` can lose octets that are already buffered, and can hang. Here both drivers put a TlsLayer between
their socket and their engine, so the change from clear to TLS happens at one exact octet. After the peer's close_notify nothing
is plaintext any more, whatever arrives (the fault of Exim's CVE-2026-45185).
"""

import ssl
import warnings
from pathlib import Path

_RECORD = 16384  # a TLS record holds at most 2^14 octets of plaintext (RFC 8446 5.1)
_LARGEST_PEM = 1_000_000


class TlsError(Exception):
    """The handshake or the TLS connection failed, or a certificate is unusable; `words` says what is wrong."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class TlsLayer:
    """One side of one TLS connection.

    The driver hands `receive` what the socket brought and the engine what it returns; `encrypt` takes what the engine wants
    sent. After each of these calls, and after `start`, `data_to_send` holds what the socket must send, also when the call
    raised TlsError (the alert that tells the peer why).
    """

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_name: str = "") -> None:
        """`server_name` (client side): the name for SNI and, in a verifying context, for the certificate; "" sends none."""
        if context.check_hostname and not server_name:
            raise TlsError("A certificate can only be verified against a name, and none was given.")
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._object = context.wrap_bio(
                self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name.rstrip(".") or None
            )
        except (ssl.SSLError, ValueError) as error:  # ValueError: no host name at all
            raise TlsError(f"TLS cannot start with the name {server_name!r}: {error}.") from error
        self._waiting: list[bytes] = []
        self.is_handshake_done = False
        self.is_closed = False
        """The peer's close_notify has arrived: nothing after it is ever plaintext."""

    def start(self) -> None:
        """Begins the handshake; on the client side `data_to_send` then holds the ClientHello."""
        self._shake_hands()

    def receive(self, ciphertext: bytes) -> bytes:
        """Takes octets from the socket; returns the plaintext they complete, b"" when none. Raises TlsError."""
        if self.is_closed:
            return b""
        self._incoming.write(ciphertext)
        if not self.is_handshake_done:
            self._shake_hands()
            if not self.is_handshake_done:
                return b""
        return self._read()

    def encrypt(self, plaintext: bytes) -> None:
        """Takes octets to send; before the handshake is done they wait for it. Raises TlsError."""
        if not self.is_handshake_done:
            self._waiting.append(plaintext)
            return
        write = self._object.write
        try:
            written = write(plaintext)
            if written < len(plaintext):
                rest = memoryview(plaintext)[written:]
                while rest:
                    rest = rest[write(rest) :]
        except ssl.SSLError as error:
            raise TlsError(f"TLS could not send: {_describe(error)}.") from error

    def data_to_send(self) -> bytes:
        """The octets the socket must send now; b"" when none."""
        return self._outgoing.read()

    def close(self) -> None:
        """Says close_notify, so that the peer knows the end is meant; does not wait for its answer."""
        if not self.is_handshake_done:
            return
        try:
            self._object.unwrap()
        except ssl.SSLError:  # SSLWantReadError: ours is out, the peer's has not come; others: nothing left to say
            self._incoming.write_eof()

    @property
    def description(self) -> str:
        """Version and cipher for trace and log, as "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" before the handshake is done."""
        cipher = self._object.cipher()
        return f"{self._object.version()} {cipher[0]}" if self.is_handshake_done and cipher else ""

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate in DER; b"" when it showed none, or has not yet."""
        return (self._object.getpeercert(binary_form=True) or b"") if self.is_handshake_done else b""

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLCertVerificationError as error:
            raise TlsError(f"The certificate was not accepted: {error.verify_message}.") from error
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"The TLS handshake failed: {_describe(error)}.") from error
        self.is_handshake_done = True
        waiting, self._waiting = self._waiting, []
        for plaintext in waiting:
            self.encrypt(plaintext)

    def _read(self) -> bytes:
        read = self._object.read
        pieces = []
        try:
            while piece := read(_RECORD):
                pieces.append(piece)
            self.is_closed = True  # an empty read is the peer's close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.is_closed = True
        except ssl.SSLError as error:
            # What came whole before the fault was authentic, but the peer is lost: nobody needs it any more.
            raise TlsError(f"The TLS connection broke: {_describe(error)}.") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for one listener: TLS 1.2 and up. Raises TlsError when the files can't be used.

    Make one for each listener and each reload: OpenSSL draws the keys of session tickets for each context, so a ticket (TLS
    1.2; for 1.3 none are given out) from one listener means nothing to another.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise TlsError(_why_unusable(certificate, key, error)) from error
    except OSError as error:
        missing = next((p for p in (certificate, key) if not p.exists()), None)
        where = f"{missing} does not exist" if missing else f"{certificate} or {key}: {error.strerror}"
        raise TlsError(f"The certificate cannot be read: {where}.") from error
    return context


def _why_unusable(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    """OpenSSL says of a file of another kind no more than "PEM lib"."""
    for path, mark, what in (
        (certificate, b"CERTIFICATE-----", "certificate"),
        (key, b"PRIVATE KEY-----", "private key"),
    ):
        with path.open("rb") as file:
            if mark not in file.read(_LARGEST_PEM):
                return f"{path} holds no {what} in PEM form (-----BEGIN ...)."
    return (
        f"The certificate {certificate} and the key {key} cannot be used together: {_describe(error)}. "
        "They must belong together, and the key must not need a passphrase."
    )


def client_context(*, verify: bool, ca_file: Path | None = None) -> ssl.SSLContext:
    """A context for connections we open: TLS 1.2 and up. Raises TlsError when `ca_file` can't be used.

    Without `verify` any certificate will do (opportunistic TLS, RFC 7435: most mail servers' certificates prove nothing, and
    the alternative is no TLS). With it the certificate must lead to `ca_file`, or the system's authorities, and name the host.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        if ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(ca_file)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"The authorities in {ca_file} cannot be read: {_describe(error)}.") from error
    return context


def lenient_context() -> ssl.SSLContext:
    """A context for looking, never for mail: any version, cipher and certificate that OpenSSL still knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 is what some hosts that need a test speak
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.options |= ssl.OP_LEGACY_SERVER_CONNECT if hasattr(ssl, "OP_LEGACY_SERVER_CONNECT") else 0
    return context


def _no_passphrase() -> str:
    return ""  # else OpenSSL would ask on the terminal, and a server would hang there


def _describe(error: OSError) -> str:
    """OpenSSL's reason as words: "WRONG_VERSION_NUMBER" becomes "wrong version number"."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    words = str(error.strerror or error)
    return words.removeprefix("[SSL] ").partition(" (_ssl.c")[0]
