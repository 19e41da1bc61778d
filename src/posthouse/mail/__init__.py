"""What is carried: envelope, message, grant, outcome. Values only; no I/O, no clock.

This room must not know how mail arrives, where it is stored, or who may relay. A message in transit is octets:
fields are put in front of it, and nothing in it is parsed and written again (signatures survive).
"""
