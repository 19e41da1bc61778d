"""SMTP and LMTP next hops: one connection at a time, kept while there is work, opened again when the next hop ended it."""

import collections

import msgspec

from posthouse.mail.outcome import Deferred
from posthouse.mail.status import Stage
from posthouse.net.client import ClientChannel, Loss, PeerLost
from posthouse.transports.api import Closed, Feed, Unavailable
from posthouse.transports.opening import SmtpSettings, open_session
from posthouse.transports.session import Job, Session
from posthouse.transports.verdict import unavailable

__all__ = ["SmtpSettings", "SmtpTransport"]

MOST_LOSSES = 2
"""Connections in a row that were lost without one transaction answered, before the next hop counts as unavailable."""


class SmtpTransport:
    """See `transports.api.Transport`."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    async def run(self, feed: Feed) -> Closed | Unavailable:
        """Delivers what `feed` gives. A message on which a connection broke does not keep the others from a new one."""
        carried: collections.deque[Job] = collections.deque()
        completed = losses = 0
        while True:
            opened = await open_session(self._settings)
            if isinstance(opened, Unavailable):
                return _give_up(opened, carried, completed)
            channel, endpoint = opened
            settings = self._settings
            session = Session(
                channel, str(endpoint), feed, carried, recipients=settings.recipients, messages=settings.messages
            )
            try:
                lost = await self._use(channel, session, feed)
            finally:
                channel.abort()
            completed += session.completed
            losses = 0 if session.completed else losses + 1
            if lost is not None and (losses >= MOST_LOSSES or (losses and lost.loss is Loss.FAREWELL)):
                return _give_up(unavailable(lost, Stage.MAIL, str(endpoint)), carried, completed)
            if not carried and not await feed.wait(0):
                return Closed(completed)

    async def _use(self, channel: ClientChannel, session: Session, feed: Feed) -> PeerLost | None:
        """Delivers over one connection until nothing came for a while, or it is used up or lost."""
        while True:
            lost = await session.deliver()
            if lost is not None:
                return lost
            if session.is_used_up or not await feed.wait(self._settings.idle_seconds):
                await channel.quit()
                return None
            if channel.is_lost:  # the server ended it while nothing was to do: that is its right
                return None


def _give_up(why: Unavailable, carried: collections.deque[Job], completed: int) -> Unavailable:
    for job in carried:
        job.settle(job.unsettled, Deferred(why.status, why.reason, why.remote, why.diagnostic))
    return msgspec.structs.replace(why, attempts=completed)
