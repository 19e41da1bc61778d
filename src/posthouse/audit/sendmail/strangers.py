"""The strangers and recipients that sendmail is asked about."""

from collections.abc import Iterator

from posthouse.audit.crowd import Block, stranger
from posthouse.audit.sendmail.ask import Question
from posthouse.audit.sendmail.text import Text, network_of, networks
from posthouse.policy.networks import Address

THIRD = "third-party.example"
STRANGER = "stranger.example"
_MOST_DOMAINS = 3
_TRICKS = (
    "someone%{third}@{ours}",
    "someone%{third}%{ours}",
    "{third}!someone@{ours}",
    "{third}!someone",
    "{ours}!{third}!someone",
    '"someone@{third}"@{ours}',
    "someone@{third}@{ours}",
    "@{ours}:someone@{third}",
    "someone={third}@{ours}",
    "someone+{third}@{ours}",
    "someone#{third}@{ours}",
    "someone%{third}",
)


def plain(block: Block) -> Question:
    """A stranger of that block who claims nothing."""
    return Question(block.example(), STRANGER, f"someone@{STRANGER}", f"someone@{THIRD}")


def claims(text: Text, local_names: tuple[str, ...]) -> Iterator[Question]:
    """From an address that nothing names: all that can be said of oneself, to all that might be carried further."""
    address = stranger(networks(text))
    domains = tuple(name for name in local_names if not name.startswith("["))
    hellos = (STRANGER, *domains[:2], "localhost")
    reverse_paths = list(dict.fromkeys((f"someone@{STRANGER}", "", *_senders(text, domains))))
    for forward_path in _third_parties(text):
        for is_encrypted in (False, True):
            for hello in dict.fromkeys(hellos):
                for path in reverse_paths:
                    yield Question(address, hello, path, forward_path, is_encrypted=is_encrypted)
    yield from _named(text, address)
    for forward_path in tricks(text, domains):
        for is_encrypted in (False, True):
            yield Question(address, STRANGER, f"someone@{STRANGER}", forward_path, is_encrypted=is_encrypted)


def _senders(text: Text, domains: tuple[str, ...]) -> Iterator[str]:
    for entry in text.relays("from", ""):
        if network_of(entry.key) is None:
            yield entry.key if "@" in entry.key.rstrip("@") else f"someone@{entry.key.strip('@')}"
    yield from (f"someone@{domain}" for domain in domains[:_MOST_DOMAINS])


def _wide(text: Text, *tags: str) -> Iterator[str]:
    """Keys without a dot: whole top-level domains."""
    keys = [line.text for line in text.relay_domains] + [entry.key for entry in text.relays("", *tags)]
    for key in keys:
        bare = key.strip(".").lower()
        if bare.isalpha() and bare not in ("localhost", "localdomain"):
            yield bare


def _third_parties(text: Text) -> tuple[str, ...]:
    return tuple(dict.fromkeys((f"someone@{THIRD}", *(f"someone@third-party.{end}" for end in _wide(text, "to")))))


def _named(text: Text, address: Address) -> Iterator[Question]:
    """Clients whose confirmed name lies below a whole top-level domain that is trusted: anyone can have one."""
    for end in dict.fromkeys(_wide(text, "connect")):
        yield Question(address, STRANGER, f"someone@{STRANGER}", f"someone@{THIRD}", name=f"mail.stranger.{end}")


def tricks(text: Text, domains: tuple[str, ...]) -> tuple[str, ...]:
    """Third parties hidden in addresses of the domains that are taken mail for."""
    ours = [*domains[:_MOST_DOMAINS], *(line.text for line in text.relay_domains if network_of(line.text) is None)]
    found = [trick.format(third=THIRD, ours=one) for one in ours[: 2 * _MOST_DOMAINS] for trick in _TRICKS]
    return tuple(dict.fromkeys(found))
