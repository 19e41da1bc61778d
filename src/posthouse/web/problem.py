"""Why a request is not answered as asked: a problem for programs (RFC 9457), a page or a line for people."""

import msgspec


class Problem(Exception):
    """Raised by a handler, answered by the app. `slug` names it for programs, `detail` is a sentence that says what to do."""

    def __init__(self, status: int, slug: str, title: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.title = title
        self.detail = detail
        self.retry_after = retry_after

    @property
    def document(self) -> "ProblemDocument":
        """For programs."""
        return ProblemDocument(f"/problems#{self.slug}", self.title, self.status, self.detail)


class ProblemDocument(msgspec.Struct, frozen=True):
    """application/problem+json. `type` is a link to words about this kind of problem."""

    type: str
    title: str
    status: int
    detail: str


def not_found(what: str) -> Problem:
    """There is nothing there."""
    return Problem(404, "not-found", "Not found", what)


def unreadable(why: str) -> Problem:
    """The request is not one that can be understood."""
    return Problem(400, "unreadable", "Not understood", why)


def too_often(words: str, seconds: float) -> Problem:
    """A limit is reached."""
    return Problem(429, "too-often", "Too often", f"{words}; try again in {in_words(seconds)}.", seconds)


def in_words(seconds: float) -> str:
    """A time to wait, for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


PROBLEMS = {
    "not-found": "There is no such page or test. Results are forgotten when their time is over.",
    "unreadable": "The request can't be understood as it stands; the detail says which part.",
    "too-often": "A limit is reached: so many tests of one address, and so many in all, are run in an hour. "
    "Retry-After says how long to wait.",
    "queue-full": "So many tests wait already that one more would wait too long. Try later.",
    "proxy": "The request came through a proxy that this service does not know, so the address it comes from is not the mail host's. "
    "Call from the mail host itself; if the proxy is this service's own, its operator names it in [web] proxies.",
    "another-nonce": "A test of the same address is under way without this nonce. Ask again when it is over.",
    "not-proved": "The token was not found where it was looked for.",
    "not-testable": "This host or address may not be tested from here.",
    "cross-site": "Another site had your browser send this request. Nothing was done; use the form on this one.",
    "method": "This address does not take that method.",
    "too-large": "The request is larger than any that makes sense here.",
    "fault": "A fault of this service's own. It has been logged.",
    "stopping": "The service is stopping; try again in a minute.",
}
"""All problems by slug, with the words of the page /problems."""
