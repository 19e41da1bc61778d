"""Where a domain's mail goes (RFC 5321 5.1, RFC 7505): a resolver with a cache, and MX selection.

A stranger's DNS must not steer us into our own network; whether an answer may be used is decided here, with the networks given.
"""
