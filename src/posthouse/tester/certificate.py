"""What a host's certificate says, told as it is: it proves nothing here (RFC 7435)."""

from posthouse.tester.report import TlsNoted


def note_tls(state: str, description: str, certificate: bytes) -> TlsNoted:
    """`description` is version and cipher as net.tls gives them, `certificate` DER, b"" when there was none."""
    version, _, cipher = description.partition(" ")
    if not certificate:
        return TlsNoted(state, version, cipher)
    # Loaded here: its import takes longer than a whole test of a host nearby.
    from cryptography import x509  # noqa: PLC0415

    try:
        read = x509.load_der_x509_certificate(certificate)
        subject, issuer = read.subject.rfc4514_string(), read.issuer.rfc4514_string()
        not_after = f"{read.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        names = _names(read)
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        return TlsNoted(state, version, cipher, words=f"its certificate can't be read: {str(error)[:200]}")
    return TlsNoted(state, version, cipher, subject, issuer, names, not_after, subject == issuer)


def _names(certificate: object) -> tuple[str, ...]:
    from cryptography import x509  # noqa: PLC0415

    if not isinstance(certificate, x509.Certificate):
        return ()
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name) for name in found.get_values_for_type(x509.DNSName))[:20]
