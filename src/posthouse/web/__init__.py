"""The pages: the relay test as a service, and the layout that later pages share.

A visitor may have tested the address he calls from, and no other, or a host that he has shown to control; whom the web lets
be tested is decided in `caller` and by the tester's consent, never by a parameter. Everything works without script, needs
nothing from elsewhere, and runs in a process of its own: it must know neither queue nor relay nor configuration, and
nothing here is imported unless [web] is configured. (HTTP: RFC 9110; problems: RFC 9457; events: WHATWG HTML 9.2.)
"""
