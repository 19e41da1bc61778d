"""A worker's end of what all workers share (`serve.shared` is the supervisor's): news from its scheduler go up, orders come down."""

from typing import Any

import msgspec

from posthouse.net.server import Server
from posthouse.policy.crowds import Count, EndNewest, Watch, share
from posthouse.relay.lease import Awaited, Closing, Leased, Leases, Recall, Report, Tenant, Unshared
from posthouse.relay.scheduler import Scheduler
from posthouse.serve.channel import Channel
from posthouse.serve.logins import SharedDoor


class Sharing:
    """Made before the worker's parts; `scheduler` and `server` are set as soon as there are any. A worker alone shares nothing."""

    def __init__(self, channel: Channel | None, workers: int) -> None:
        self.scheduler: Scheduler | None = None
        self.server: Server | None = None
        self._channel = channel
        self._workers = workers
        self._tenant = Tenant(self._report, self._spread)
        self.login_door = SharedDoor(channel) if channel is not None and workers > 1 else None
        self.report_crowd = self._report_crowd if channel is not None and workers > 1 else None
        self.leases: Leases = self._tenant if channel is not None and workers > 1 else Unshared()
        if channel is not None:
            channel.heard = self.hear

    def share(self, most: int) -> int:
        """From how many connections of one client on this worker reports them."""
        return share(most, self._workers)

    def hear(self, verb: str, arguments: dict[str, Any]) -> None:
        """The supervisor tells something."""
        scheduler, server = self.scheduler, self.server
        if scheduler is None or server is None:
            return  # nothing has been asked for yet
        match verb:
            case "leased":
                leased = msgspec.convert(arguments, Leased)
                self._tenant.leased(leased)
                scheduler.outgoing.leased(leased)
            case "recall":
                recall = msgspec.convert(arguments, Recall)
                if self._tenant.recalled(recall):
                    scheduler.outgoing.recalled(recall)
            case "awaited":
                scheduler.outgoing.awaited(msgspec.convert(arguments, Awaited))
            case "site-closed":
                scheduler.closed_elsewhere(msgspec.convert(arguments, Closing))
            case "site-opened":
                scheduler.opened_elsewhere(arguments["site"])
            case "watch":
                watch = msgspec.convert(arguments, Watch)
                server.watch(watch.client, is_watched=watch.is_watched, is_full=watch.is_full)
            case "end-newest":
                newest = msgspec.convert(arguments, EndNewest)
                server.end_newest(newest.client, newest.count)

    def _report_crowd(self, client: str, count: int, most: int) -> None:
        if self._channel is not None:
            self._channel.tell("crowd", Count(client, count, most))

    def _report(self, report: Report) -> None:
        if self._channel is not None:
            self._channel.tell("lease", report)

    def _spread(self, news: Closing | str) -> None:
        if self._channel is None:
            return
        if isinstance(news, str):
            self._channel.tell("site-opened", {"site": news})
        else:
            self._channel.tell("site-closed", news)
