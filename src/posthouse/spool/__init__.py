"""The durable queue: group commit, SQLite and in-memory, one interface (`spool.api`).

This room decides what is on disk and when that is so. It must not know sessions, routes or schedules.
"""
