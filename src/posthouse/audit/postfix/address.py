"""Addresses as trivial-rewrite(8) takes them apart: bang paths, the percent hack, quoted `@`, source routes.

An address here is in internal form (no quotes), as smtpd passes it on: the last `@` parts local part and domain. A local
part that would need quotes is one opaque token until `resolve_dequoted_address` lets it be cracked open.
"""

import re
from collections.abc import Callable

import msgspec

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\[[^\]]*\])|([@%!:.])|([^@%!:."\[]+|.)', re.DOTALL)
_DOT_STRING = re.compile(r"[^\s()<>@,;:\\\".\[\]]+(?:\.[^\s()<>@,;:\\\".\[\]]+)*")
_ROUTING = re.compile(r"[@!%]")


class Token(msgspec.Struct, frozen=True):
    """`kind` is an operator character, "a" an atom, "q" a quoted string, "l" a domain literal."""

    kind: str
    text: str


Tree = list[Token]


class Rewriting(msgspec.Struct, frozen=True):
    """The parameters that rewriting depends on."""

    origin: str
    domain: str
    host: str
    percent_hack: bool
    swap_bangpath: bool
    append_origin: bool
    append_domain: bool
    dequoted: bool
    null_domain: bool


class Taken(msgspec.Struct, frozen=True):
    """The address that is left when routes through ourselves are stripped; `is_local` when its domain is ours."""

    address: str
    is_local: bool

    @property
    def domain(self) -> str:
        """What stands behind the last `@`."""
        return self.address.rpartition("@")[2]

    @property
    def is_routed(self) -> bool:
        """Whether the local part holds an operator by which another host might route on."""
        found = _ROUTING.search(self.address)
        return found is not None and self.address[found.end() :] != self.domain


def internal(forward_path: str) -> str:
    """The internal form of what stands between the angle brackets: source route and quotes gone."""
    text = forward_path
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    return _internalize(_scan(text))


def take_apart(address: str, rules: Rewriting, is_ours: Callable[[str], bool]) -> Taken:
    """What smtpd asks of trivial-rewrite: rewrite, then strip every domain of ours. `is_ours` judges a domain."""
    tree = _quoted(address)
    if not tree:
        return Taken(f"MAILER-DAEMON@{rules.host}", is_local=True)
    tree = _quoted(_internalize(_rewrite(tree, rules)))
    saved: Tree = []
    domain: Tree = []
    for _ in range(len(address) + 100):
        tree = _without_last_dot(tree)
        if rules.null_domain and tree and tree[-1].kind == "@":
            tree = tree[:-1]
        at = _last(tree, "@")
        domain = []
        if at is not None:
            if tree[at + 1 :] and not is_ours(_internalize(tree[at + 1 :])):
                domain = tree[at:]
                break
            saved, tree = tree[at:], tree[:at]
        if _has_operator(tree, rules):
            tree = _rewrite(tree, rules)
            continue
        cracked = _cracked(tree, rules)
        if cracked is not None:
            tree = _rewrite(cracked, rules)
            continue
        if not tree or tree == [Token("q", "")]:
            tree = [Token("a", "MAILER-DAEMON")]
            continue
        if not saved:
            tree = [*tree, Token("@", "@"), *_scan(rules.host)]
            continue
        break
    if domain:
        return Taken(_internalize(tree), is_local=False)
    return Taken(_internalize([*tree, *saved]), is_local=True)


def _rewrite(tree: Tree, rules: Rewriting) -> Tree:
    """rewrite_tree() of Postfix."""
    colon = _first(tree, ":")
    if tree and tree[0].kind == "@" and colon is not None and colon + 1 < len(tree):
        tree = tree[colon + 1 :]
    if _last(tree, "@") is None:
        tree = _with_at(tree, rules)
    at = _last(tree, "@")
    if rules.append_domain and rules.domain and at is not None and at + 1 < len(tree):
        behind = tree[at + 1 :]
        if not any(token.kind in ("l", ".") for token in behind):
            tree = [*tree, Token(".", "."), *_scan(rules.domain)]
    return _without_last_dot(tree)


def _with_at(tree: Tree, rules: Rewriting) -> Tree:
    bang, percent = _first(tree, "!"), _last(tree, "%")
    if rules.swap_bangpath and bang is not None:
        return [*tree[bang + 1 :], Token("@", "@"), *tree[:bang]]
    if rules.percent_hack and percent is not None:
        return [*tree[:percent], Token("@", "@"), *tree[percent + 1 :]]
    if rules.append_origin and rules.origin:
        return [*tree, Token("@", "@"), *_scan(rules.origin)]
    return tree


def _has_operator(tree: Tree, rules: Rewriting) -> bool:
    kinds = {token.kind for token in tree}
    return "@" in kinds or (rules.swap_bangpath and "!" in kinds) or (rules.percent_hack and "%" in kinds)


def _cracked(tree: Tree, rules: Rewriting) -> Tree | None:
    """A lone quoted local part opened up where it holds an operator that may count."""
    if not rules.dequoted or len(tree) != 1 or tree[0].kind != "q":
        return None
    text = tree[0].text
    if "@" in text:
        return _quoted(text)
    if rules.percent_hack and "%" in text:
        head, _, tail = text.rpartition("%")
        return _quoted(f"{head}@{tail}")
    if rules.swap_bangpath and "!" in text:
        return _scan(text)
    return None


def _without_last_dot(tree: Tree) -> Tree:
    if len(tree) > 1 and tree[-1].kind == "." and tree[-2].kind not in ".@" and _last(tree, "@") is not None:
        return tree[:-1]
    return tree


def _quoted(address: str) -> Tree:
    """quote_822_local(): tokens of the address, a local part that needs quotes as one."""
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    head = _scan(local) if _DOT_STRING.fullmatch(local) or not local else [Token("q", local)]
    return [*head, Token("@", "@"), *_scan(domain)] if at else head


def _scan(text: str) -> Tree:
    tree = []
    for found in _TOKEN.finditer(text):
        quoted, literal, operator, atom = found.groups()
        if quoted is not None:
            tree.append(Token("q", re.sub(r"\\(.)", r"\1", quoted)))
        elif literal is not None:
            tree.append(Token("l", literal))
        elif operator is not None:
            tree.append(Token(operator, operator))
        else:
            tree.append(Token("a", atom))
    return tree


def _internalize(tree: Tree) -> str:
    return "".join(token.text for token in tree)


def _first(tree: Tree, kind: str) -> int | None:
    return next((at for at, token in enumerate(tree) if token.kind == kind), None)


def _last(tree: Tree, kind: str) -> int | None:
    return next((at for at in reversed(range(len(tree))) if tree[at].kind == kind), None)
