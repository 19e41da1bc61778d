"""Whose certificates smtpd takes for verified: with the public authorities among them, anyone's."""

import os
import re
from pathlib import Path

from posthouse.audit.postfix.place import Place, Stop
from posthouse.audit.postfix.settings import Settings

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
_DIRECTORIES = ("/etc/ssl/certs", "/etc/pki/tls/certs")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def trusts_public_authorities(settings: Settings) -> bool | Stop:
    """Whether a certificate that anybody can buy counts as verified; a Stop when the authorities can't be read."""
    if settings.is_yes("tls_append_default_CA"):
        return True
    file, path = settings.text("smtpd_tls_CAfile"), settings.text("smtpd_tls_CApath")
    if file in _BUNDLES or path.rstrip("/") in _DIRECTORIES:
        return True
    public = _public()
    for name, texts in (("smtpd_tls_CAfile", [file] if file else []), ("smtpd_tls_CApath", _in_directory(path))):
        for text in texts:
            try:
                held = _certificates(Path(text))
            except OSError as error:
                return _unread(settings.place(name), text, error)
            if held & public:
                return True
    return False


def _in_directory(path: str) -> list[str]:
    if not path:
        return []
    try:
        return sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    except OSError:
        return [path]


def _certificates(path: Path) -> set[str]:
    return {"".join(body.split()) for body in _PEM.findall(path.read_text("ascii", "replace"))}


def _public() -> set[str]:
    for bundle in _BUNDLES:
        try:
            return _certificates(Path(bundle))
        except OSError:
            continue
    return set()


def _unread(place: Place, file: str, error: OSError) -> Stop:
    return Stop(
        place, f"{file} cannot be read ({error.strerror}), so it is not known whose certificates count as verified"
    )
