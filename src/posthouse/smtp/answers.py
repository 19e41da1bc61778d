"""The replies that the server engine gives by itself, beside those of the grammar and of the order of commands."""

from posthouse.smtp.reply import Reply, reply

OK = reply(250, "2.0.0", "OK")
CHUNK_READ = reply(250, "2.0.0", "Chunk received")
READY_FOR_TLS = reply(220, "2.0.0", "Ready to start TLS")
BY_VERB = {
    "NOOP": OK,
    "HELP": reply(214, "2.0.0", "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY AUTH STARTTLS QUIT", "See RFC 5321"),
    "VRFY": reply(252, "2.0.0", "Not verified; mail to it will be tried"),
    "EXPN": reply(502, "5.5.1", "Lists are not expanded"),
}

LINE_TOO_LONG = reply(500, "5.5.2", "The command line is too long")
RESPONSE_TOO_LONG = reply(500, "5.5.6", "The authentication response is too long")
BARE_LF_IN_COMMAND = reply(500, "5.5.2", "End each command line with CRLF, not with LF alone")
BARE_LINE_END = reply(550, "5.5.2", "The message holds a bare CR or LF; end each line with CRLF and send it again")
HEADER_TOO_LONG = reply(552, "5.3.4", "The header of the message is too long")
TOO_MANY_RECIPIENTS = reply(452, "4.5.3", "Too many recipients; send the rest in another transaction")

TLS_REQUIRED = reply(530, "5.7.0", "Say STARTTLS first")
LOGIN_REQUIRED = reply(530, "5.7.0", "Authentication required")
NOT_IN_CLEAR = reply(538, "5.7.11", "Encryption required for authentication; say STARTTLS first")
MECHANISM_UNKNOWN = reply(504, "5.5.4", "That authentication mechanism is not offered")
ALREADY_LOGGED_IN = reply(503, "5.5.1", "Already authenticated")
ALREADY_TLS = reply(503, "5.5.1", "TLS is already active")

TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors; closing the connection")
TOO_MANY_REFUSALS = reply(421, "4.7.0", "Too many refused commands; closing the connection")
TOO_MANY_MAILS = reply(421, "4.7.0", "Too many messages in one session; open another")
TOO_MANY_CHUNKS = reply(421, "4.7.0", "Too many small chunks; closing the connection")
ENDLESS_LINE = reply(421, "4.7.0", "The line does not end; closing the connection")
NOT_A_WEB_SERVER = reply(421, "4.7.0", "This is a mail server; closing the connection")


def too_large(limit: int) -> Reply:
    """For content over the size that EHLO names (RFC 1870 6.2)."""
    return reply(552, "5.3.4", f"The message is larger than {limit} octets")
