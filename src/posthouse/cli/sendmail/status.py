"""Exit statuses of sysexits.h, which callers of sendmail(1) understand."""

import enum


class Sysexit(enum.IntEnum):
    """What became of the mail."""

    OK = 0
    USAGE = 64
    DATAERR = 65
    NOUSER = 67
    UNAVAILABLE = 69
    IOERR = 74
    TEMPFAIL = 75
    NOPERM = 77
    CONFIG = 78


def status_of(code: int, enhanced: str) -> Sysexit:
    """The exit status that a negative reply means: `code` of RFC 5321, `enhanced` of RFC 3463 or ""."""
    if code < 500:
        return Sysexit.TEMPFAIL
    if enhanced.startswith("5.1."):
        return Sysexit.NOUSER
    if enhanced.startswith("5.7."):
        return Sysexit.NOPERM
    if enhanced.startswith(("5.6.", "5.3.4", "5.5.2")) or code in (552, 554):
        return Sysexit.DATAERR
    return Sysexit.UNAVAILABLE
