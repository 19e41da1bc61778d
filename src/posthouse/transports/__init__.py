"""How a message leaves: SMTP and LMTP, Maildir, pipe. Each takes attempts and answers with one outcome a recipient.

This room must not know the queue, the schedule or the policy.
"""
