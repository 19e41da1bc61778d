"""Which sockets each worker gets: its own by SO_REUSEPORT, or those of systemd, which all workers share."""

import socket

import msgspec

from posthouse.config import Config, ListenerSettings
from posthouse.net.listen import ListenError, address_text, listen, listen_unix
from posthouse.observe import log
from posthouse.serve import activation
from posthouse.serve.asked import ask_socket
from posthouse.serve.data_dir import DataDir
from posthouse.serve.privileges import Identity
from posthouse.serve.web_keeper import WebSockets, web_moves, web_sockets


class Place(msgspec.Struct, frozen=True):
    """The address of one listener with its sockets: one a worker, or one shared by all.

    `port` is what the configuration says, 0 included; `bound_port` what it came to.
    """

    host: str
    port: int
    bound_port: int
    sockets: tuple[socket.socket, ...]

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


class Change(msgspec.Struct):
    """What a reload does to the sockets; nothing old is touched before `close_unused`.

    `kept` and `opened` are as `Prepare` tells them. `metrics` is the endpoint's new socket, if `metrics_changes`;
    `ask` and `ask_changes` are the same for the collector's, `web` and `web_changes` for the web's,
    some of which may be those of `web_before`.
    """

    places: list[Place]
    kept: tuple[tuple[int, int], ...]
    opened: tuple[int, ...]
    unused: list[Place]
    metrics: socket.socket | None
    metrics_changes: bool
    ask: socket.socket | None = None
    ask_changes: bool = False
    web: WebSockets | None = None
    web_changes: bool = False
    web_before: WebSockets | None = None

    def abandon(self) -> None:
        """The reload is refused: what was opened for it goes."""
        for index in self.opened:
            self.places[index].close()
        for one in (self.metrics, self.ask):
            if one is not None:
                one.close()
        if self.web is not None:
            self.web.close(but=self.web_before)

    def close_unused(self) -> None:
        """The reload is in force: addresses that are no longer listened on."""
        for place in self.unused:
            place.close()


class Listening:
    """All sockets of the server: the listeners' places, the local ones, the metrics endpoint's, that for questions to the collector."""

    def __init__(
        self,
        places: list[Place],
        submit: socket.socket,
        control: socket.socket,
        metrics: socket.socket | None,
        ask: socket.socket | None = None,
        web: WebSockets | None = None,
    ) -> None:
        self.places = places
        self.submit = submit
        self.control = control
        self.metrics = metrics
        self.ask = ask
        self.web = web

    @classmethod
    def open(cls, config: Config, data: DataDir, identity: Identity) -> "Listening":
        """Binds everything, while there may still be the privilege for it. ListenError."""
        inherited = activation.inherited_sockets()
        places = _open(config.listeners, config.workers, inherited)
        submit = activation.take_unix(str(data.submit_socket), inherited) or listen_unix(data.submit_socket, 0o666)
        control = listen_unix(data.control_socket, 0o600)
        for path in (data.submit_socket, data.control_socket):
            identity.give(path)
        used = {id(one) for place in places for one in place.sockets}
        for unused in inherited:
            if id(unused) not in used:
                log.warning(
                    "socket-unused", address=str(unused.getsockname()), words="no [[listener]] has this address"
                )
                unused.close()
        return cls(places, submit, control, _metrics_socket(config), ask_socket(config), web_sockets(config))

    @property
    def addresses(self) -> list[str]:
        """The listeners' addresses as people write them."""
        return [place.text for place in self.places]

    def prepare(self, old: Config, new: Config) -> Change:
        """Opens what `new` needs beyond what is open, and changes nothing else. ListenError."""
        remaining = dict(enumerate(self.places))
        kept: dict[int, int] = {}
        for index, wanted in enumerate(new.listeners):
            for old_index, place in remaining.items():
                if (place.host, place.port) == (wanted.host, wanted.port):
                    kept[index] = old_index
                    del remaining[old_index]
                    break
        added = [index for index in range(len(new.listeners)) if index not in kept]
        metrics_changes = new.metrics != old.metrics
        metrics = _metrics_socket(new) if metrics_changes else None
        ask_changes = _asks(new) != _asks(old)
        ask: socket.socket | None = None
        web: WebSockets | None = None
        try:
            web = web_sockets(new, old, self.web) if web_moves(old, new) else None
            ask = ask_socket(new) if ask_changes else None
            opened = _open(tuple(new.listeners[index] for index in added), new.workers, [])
        except ListenError:
            for one in (metrics, ask):
                if one is not None:
                    one.close()
            if web is not None:
                web.close(but=self.web)
            raise
        fresh = dict(zip(added, opened, strict=True))
        places = [self.places[kept[i]] if i in kept else fresh[i] for i in range(len(new.listeners))]
        return Change(
            places,
            tuple(sorted(kept.items())),
            tuple(added),
            list(remaining.values()),
            metrics,
            metrics_changes,
            ask,
            ask_changes,
            web,
            web_moves(old, new),
            self.web,
        )

    def close(self) -> None:
        """Our ends: no new connection lands where nobody will accept it."""
        for place in self.places:
            place.close()
        for one in (self.submit, self.control, self.metrics, self.ask, self.web):
            if one is not None:
                one.close()


def _asks(config: Config) -> tuple[str, int]:
    return config.collector.ask_host, config.collector.ask_port


def _metrics_socket(config: Config) -> socket.socket | None:
    return listen(config.metrics.host, config.metrics.port)[0] if config.metrics.port else None


def _open(listeners: tuple[ListenerSettings, ...], workers: int, inherited: list[socket.socket]) -> list[Place]:
    places: list[Place] = []
    try:
        for wanted in listeners:
            shared = activation.take_matching(wanted.host, wanted.port, inherited)
            sockets = (shared,) if shared else tuple(listen(wanted.host, wanted.port, workers))
            bound = int(sockets[0].getsockname()[1])
            places.append(Place(wanted.host, wanted.port, bound, sockets))
    except BaseException:
        for place in places:
            place.close()
        raise
    return places
