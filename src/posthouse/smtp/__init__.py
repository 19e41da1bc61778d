"""The SMTP protocol, both sides, without I/O and without a clock (RFC 5321 and its extensions).

Bytes in, events out; replies in, bytes out. This room decides what is well-formed and what may follow what.
It must not know who may relay, where mail is stored, or that sockets exist. A local part is opaque octets here
and everywhere: `%`, `!` and a quoted `@` never choose a route.
"""
