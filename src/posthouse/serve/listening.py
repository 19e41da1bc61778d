"""Which sockets each worker gets: its own by SO_REUSEPORT, or those of systemd, which all workers share."""

import socket

import msgspec

from posthouse.config import Config, ListenerSettings
from posthouse.net.listen import address_text, listen
from posthouse.serve import activation


class Place(msgspec.Struct, frozen=True):
    """The address of one listener with its sockets: one a worker, or one shared by all.

    `port` is what the configuration says, 0 included; `bound_port` what it came to.
    """

    host: str
    port: int
    bound_port: int
    sockets: tuple[socket.socket, ...]
    is_inherited: bool = False

    @property
    def text(self) -> str:
        """The address as people write it."""
        return address_text(self.host, self.bound_port)

    def socket_for(self, worker: int) -> socket.socket:
        """The socket on which worker number `worker` accepts."""
        return self.sockets[worker % len(self.sockets)]

    def close(self) -> None:
        """Our own ends only: a worker's copies stay open until it closes them."""
        for one in self.sockets:
            one.close()


def open_places(config: Config, inherited: list[socket.socket]) -> list[Place]:
    """A place for each of `config.listeners`, in their order; what it uses of `inherited` is taken out. ListenError."""
    return _open(config.listeners, config.workers, inherited)


def change_places(old: list[Place], config: Config) -> tuple[list[Place], tuple[tuple[int, int], ...], tuple[int, ...]]:
    """The places after a reload, as `Prepare` tells them: (all places, kept pairs of new and old, newly opened). ListenError."""
    remaining = dict(enumerate(old))
    kept: dict[int, int] = {}
    for new_index, wanted in enumerate(config.listeners):
        for old_index, place in remaining.items():
            if (place.host, place.port) == (wanted.host, wanted.port):
                kept[new_index] = old_index
                del remaining[old_index]
                break
    added = [index for index in range(len(config.listeners)) if index not in kept]
    opened = _open(tuple(config.listeners[index] for index in added), config.workers, [])
    fresh = dict(zip(added, opened, strict=True))
    places = [old[kept[index]] if index in kept else fresh[index] for index in range(len(config.listeners))]
    return places, tuple(sorted(kept.items())), tuple(added)


def _open(listeners: tuple[ListenerSettings, ...], workers: int, inherited: list[socket.socket]) -> list[Place]:
    places: list[Place] = []
    try:
        for wanted in listeners:
            shared = activation.take_matching(wanted.host, wanted.port, inherited)
            sockets = (shared,) if shared else tuple(listen(wanted.host, wanted.port, workers))
            bound = int(sockets[0].getsockname()[1])
            places.append(Place(wanted.host, wanted.port, bound, sockets, is_inherited=shared is not None))
    except BaseException:
        for place in places:
            place.close()
        raise
    return places
