"""The one error of this room."""


class ConfigError(Exception):
    """The configuration cannot be used; the text is one sentence with the place, the key and the remedy."""
