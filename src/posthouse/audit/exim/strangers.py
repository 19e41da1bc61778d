"""The strangers and recipients that an Exim configuration may tell apart."""

import re
from collections.abc import Iterator

from posthouse.audit.crowd import stranger
from posthouse.audit.exim.lists import Lists, items
from posthouse.audit.exim.reading import Configuration
from posthouse.audit.exim.session import Session
from posthouse.policy.networks import Address

THIRD = "third-party.example"
_STRANGER = "stranger.example"
_MOST_CLAIMS = 12
_MOST_DOMAINS = 3
_TRICKS = (
    "someone%{third}",
    "{third}!someone",
    "someone={third}",
    "someone#{third}",
    "someone+{third}",
    "someone@{third}",
    "@{third}:someone",
)
_DOMAIN = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")


def plain(address: Address) -> Session:
    """A stranger with that address who claims nothing."""
    return Session(address, _STRANGER, False, f"someone@{_STRANGER}", "someone", THIRD)


def claims(lists: Lists) -> Iterator[Session]:
    """From an address that no list names: all that can be said of oneself, to all that might be carried further."""
    configuration = lists.configuration
    address = stranger(lists.networks())
    domains = own_domains(configuration)
    said = _asked_of(configuration)
    hellos = (_STRANGER, *_hellos(configuration)) if "helo" in said else (_STRANGER,)
    reverse_paths: tuple[str, ...] = (f"someone@{_STRANGER}", "")
    if "sender" in said.replace("sender_host", "").replace("sender_helo", ""):
        reverse_paths += tuple(f"someone@{domain}" for domain in domains[:_MOST_CLAIMS])
    for local_part, domain in recipients(configuration, domains):
        for is_encrypted in (False, True) if "encrypted" in said or "tls" in said else (False,):
            for hello in hellos:
                for path in reverse_paths:
                    yield Session(address, hello, is_encrypted, path, local_part, domain)


def _asked_of(configuration: Configuration) -> str:
    """All that the ACLs, lists and routers ask, as one text: what is not mentioned can't matter."""
    texts = [text.text for text in (*configuration.options.values(), *configuration.lists.values())]
    texts += [
        f"{one.name} {one.value}" for all_of in configuration.acls.values() for st in all_of for one in st.conditions
    ]
    texts += [f"{name} {text.text}" for router in configuration.routers for name, text in router.options.items()]
    return "\n".join(texts)


def recipients(configuration: Configuration, domains: tuple[str, ...]) -> list[tuple[str, str]]:
    """The third party itself, by each local part that is listed too; third parties that only a wide pattern lists; and tricks."""
    found = [("someone", THIRD), *((local, THIRD) for local in _local_parts(configuration))]
    for text in _domain_texts(configuration):
        for item in items(text):
            ending = item.removeprefix("*").lstrip(".")
            if item.startswith("*") and ending and "." not in ending and ending.isalnum():
                found.append(("someone", f"third-party.{ending}"))
    affixes = [
        affix.strip().strip("*") for router in configuration.routers for affix in items(router.get("local_part_prefix"))
    ]
    for domain in domains[:_MOST_DOMAINS]:
        for trick in _TRICKS:
            local = trick.format(third=THIRD)
            found += [(f"{affix}{local}", domain) for affix in ("", *affixes)]
    return list(dict.fromkeys(found))


def own_domains(configuration: Configuration) -> tuple[str, ...]:
    """The domains that stand in lists, named or not, the named ones first; and the host's own name."""
    found = [item for text in _domain_texts(configuration) for item in items(text) if _DOMAIN.fullmatch(item)]
    own = configuration.options.get("primary_hostname")
    found += [own.text] if own else []
    return tuple(dict.fromkeys(one.lower() for one in found))


def _local_parts(configuration: Configuration) -> Iterator[str]:
    """One for each entry of a list of local parts; what stands for any text is filled with a letter."""
    listed: list[str] = []
    for (kind, _), text in configuration.lists.items():
        if kind == "localpartlist":
            listed += items(text.text)
        elif kind == "addresslist":
            listed += [item.rpartition("@")[0] for item in items(text.text)]
    for statements in configuration.acls.values():
        for condition in (one for statement in statements for one in statement.conditions):
            if condition.name == "local_parts":
                listed += items(condition.value)
            elif condition.name == "recipients":
                listed += [item.rpartition("@")[0] for item in items(condition.value)]
    for item in listed:
        bare = re.sub(r"\.[*+]|\[[^\]]*\][*+]?|\*", "x", item.lstrip("!").strip().lstrip("^").rstrip("$"))
        local = bare.partition("|")[0].replace("(", "").replace(")", "").replace("\\", "")
        if re.fullmatch(r"[A-Za-z0-9.=_+-]+", local):
            yield local


def _domain_texts(configuration: Configuration) -> Iterator[str]:
    for (kind, _), text in configuration.lists.items():
        if kind == "domainlist":
            yield text.text
        elif kind == "addresslist":
            yield " : ".join(item.rpartition("@")[2] for item in items(text.text))
    for statements in configuration.acls.values():
        for statement in statements:
            for condition in statement.conditions:
                if condition.name in ("domains", "sender_domains"):
                    yield condition.value
                elif condition.name in ("senders", "recipients"):
                    yield " : ".join(item.rpartition("@")[2] for item in items(condition.value))


def _hellos(configuration: Configuration) -> tuple[str, ...]:
    """Names that a condition compares HELO with, and those that naive rules trust."""
    own = configuration.options.get("primary_hostname")
    found = ["localhost", *([own.text] if own else [])]
    for statements in configuration.acls.values():
        for statement in statements:
            for condition in statement.conditions:
                if "sender_helo_name" in condition.value:
                    found += re.findall(r"\{([A-Za-z0-9.-]+\.[A-Za-z0-9-]+)\}", condition.value)
    return tuple(dict.fromkeys(found))
