"""The relay test from outside: cases, the prober, the collector, consent, verdicts (RFC 5321 3.6, 7.9; RFC 2505).

It decides whether a host relays for strangers, by what arrives and not by what a reply promises. A case that could not be
tried, or that was accepted and never seen again, is told as such. It must not know queue, relay or configuration, and it
tests no host without its owner's consent.
"""
