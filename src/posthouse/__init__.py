"""Posthouse: an SMTP relay that cannot become an open relay by accident."""

__version__ = "0.1.0"
