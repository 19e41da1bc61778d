"""The mailboxes of an address list (RFC 5322 3.4): names, comments, groups and quoting around them are passed over."""


def read_mailboxes(text: str) -> list[str]:
    """The mailboxes in order, quoted local parts as they stand. ValueError when a quote, comment or bracket does not end."""
    found: list[str] = []
    words = ""
    inside: str | None = None  # what stood in angle brackets: it alone counts, the words before are a name
    at = 0
    while at < len(text):
        character = text[at]
        if character == '"':
            end = _end_of_quoted(text, at)
            words += text[at:end]
            at = end
            continue
        if character == "(":
            at = _end_of_comment(text, at)
            continue
        if character == "<":
            end = _end_of_angle(text, at)
            inside = text[at + 1 : end - 1]
            at = end
            continue
        if character == ":":  # the words before name a group
            words = ""
        elif character in ",;":
            _add(found, words, inside)
            words, inside = "", None
        else:
            words += character
        at += 1
    _add(found, words, inside)
    return found


def _add(found: list[str], words: str, inside: str | None) -> None:
    mailbox = (
        words.strip()
        if inside is None
        else inside.rpartition(":")[2].strip()
        if inside.startswith("@")
        else inside.strip()
    )
    if not mailbox:
        return
    if '"' not in mailbox:
        mailbox = "".join(mailbox.split()) if "@" in mailbox and inside is None and " @" in mailbox else mailbox
        if " " in mailbox:
            raise ValueError(f"{mailbox!r} is not one address; are commas missing between several?")
    found.append(mailbox)


def _end_of_quoted(text: str, start: int) -> int:
    at = start + 1
    while at < len(text):
        if text[at] == '"':
            return at + 1
        at += 2 if text[at] == "\\" else 1
    raise ValueError("a quoted string does not end")


def _end_of_comment(text: str, start: int) -> int:
    depth, at = 0, start
    while at < len(text):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 2 if text[at] == "\\" else 1
    raise ValueError("a comment does not end")


def _end_of_angle(text: str, start: int) -> int:
    at = start + 1
    while at < len(text):
        if text[at] == ">":
            return at + 1
        at = _end_of_quoted(text, at) if text[at] == '"' else at + 1
    raise ValueError("an angle bracket does not end")
