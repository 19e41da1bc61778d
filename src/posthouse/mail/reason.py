"""Why: one slug for programs, one sentence for people, made where a decision or an outcome is made.

The SMTP reply, the log, the queue listing, the DSN and the metrics all show the same Reason.
"""

import enum

import msgspec


class Slug(enum.StrEnum):
    """Every reason there is. Slugs are public: programs match on them, and docs/reasons.md explains each."""

    # grants
    LOCAL_DELIVERY = "local-delivery"
    RELAY_DOMAIN = "relay-domain"
    TRUSTED_NETWORK = "trusted-network"
    AUTHENTICATED_USER = "authenticated-user"
    LOCAL_USER = "local-user"
    FORWARDING = "forwarding"
    OWN_NOTIFICATION = "own-notification"
    LAB_WINDOW = "lab-window"
    # refusals and deferrals of policy
    RELAY_DENIED = "relay-denied"
    RELAY_OFF = "relay-off"
    ROUTING_TRICK = "routing-trick"
    NO_SUCH_RECIPIENT = "no-such-recipient"
    LOGIN_REQUIRED = "login-required"
    LOGIN_WRONG = "login-wrong"
    TOO_MANY_RECIPIENTS = "too-many-recipients"
    ADDRESS_UNKNOWN = "client-address-unknown"
    LAB_OVER = "lab-over"
    NETWORKS_SUSPENDED = "networks-suspended"
    # outcomes of attempts
    RELAYED = "relayed"
    DELIVERED = "delivered"
    NEXT_HOP_DEFERRED = "next-hop-deferred"
    NEXT_HOP_REFUSED = "next-hop-refused"
    NEXT_HOP_UNREACHABLE = "next-hop-unreachable"
    NEXT_HOP_LOST = "next-hop-lost"
    NEXT_HOP_TIMEOUT = "next-hop-timeout"
    NEXT_HOP_BROKEN = "next-hop-broken"
    NEXT_HOP_FORBIDDEN = "next-hop-forbidden"
    TLS_FAILED = "tls-failed"
    LOGIN_REFUSED = "login-refused"
    NEEDS_8BITMIME = "needs-8bitmime"
    NEEDS_SMTPUTF8 = "needs-smtputf8"
    DNS_FAILED = "dns-failed"
    NO_SUCH_DOMAIN = "no-such-domain"
    NULL_MX = "null-mx"
    MX_LOOP = "mx-loop"
    NO_ADDRESS = "no-address"
    MAIL_LOOP = "mail-loop"
    EXPIRED = "expired"
    MAILBOX_UNAVAILABLE = "mailbox-unavailable"
    COMMAND_FAILED = "command-failed"
    DELETED_BY_OPERATOR = "deleted-by-operator"
    BOUNCED_BY_OPERATOR = "bounced-by-operator"
    CONTENT_DAMAGED = "content-damaged"
    SPOOL_BUSY = "spool-busy"
    POISONED = "poisoned"
    CONFIGURATION = "configuration"
    ADDRESS_UNUSABLE = "address-unusable"


class Reason(msgspec.Struct, frozen=True):
    """Why something was decided or happened: `slug` for programs, `words`, one sentence that says what to do, for people."""

    slug: Slug
    words: str

    def __str__(self) -> str:
        return self.words
