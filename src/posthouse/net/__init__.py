"""Sockets under the engines: one driver a side, TLS through memory BIOs, PROXY headers, listening sockets.

The engine names the timeout that applies; the driver arms it. This room must not know policy, queue or configuration.
"""
