"""The main job: take mail in with a grant for each recipient, and get it out again.

intake (the only caller of Spool.accept), session, scheduler (when), route (where), site (how many at once), delivery, bounce.
It must not know sockets, TOML or the transports behind their interface.
"""
