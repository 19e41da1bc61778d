"""A worker's end of what all workers share (`serve.shared` is the supervisor's): news from its scheduler go up, orders come down."""

from typing import Any

import msgspec

from posthouse.relay.lease import Closing, Leased, Leases, Recall, Report, Tenant, Unshared
from posthouse.relay.scheduler import Scheduler
from posthouse.serve.channel import Channel
from posthouse.serve.logins import SharedDoor


class Sharing:
    """Made before the worker's parts; `scheduler` is set as soon as there is one. A worker alone shares nothing."""

    def __init__(self, channel: Channel | None, workers: int) -> None:
        self.scheduler: Scheduler | None = None
        self._channel = channel
        self._tenant = Tenant(self._report, self._spread)
        self.login_door = SharedDoor(channel) if channel is not None and workers > 1 else None
        self.leases: Leases = self._tenant if channel is not None and workers > 1 else Unshared()
        if channel is not None:
            channel.heard = self.hear

    def hear(self, verb: str, arguments: dict[str, Any]) -> None:
        """The supervisor tells something."""
        scheduler = self.scheduler
        if scheduler is None:
            return  # nothing has been asked for yet
        match verb:
            case "leased":
                leased = msgspec.convert(arguments, Leased)
                self._tenant.leased(leased)
                scheduler.leased(leased)
            case "recall":
                recall = msgspec.convert(arguments, Recall)
                if self._tenant.recalled(recall):
                    scheduler.recalled(recall)
            case "site-closed":
                scheduler.closed_elsewhere(msgspec.convert(arguments, Closing))
            case "site-opened":
                scheduler.opened_elsewhere(arguments["site"])

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
