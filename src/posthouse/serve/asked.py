"""[collector] ask: where testers elsewhere that share the key ask for their receipts. One socket, in the supervisor."""

import socket

from posthouse.config import Config
from posthouse.net.listen import listen
from posthouse.serve.collecting import testers_key
from posthouse.tester.asking import AskServer
from posthouse.tester.receipts import RECEIPTS_FILE


def ask_socket(config: Config) -> socket.socket | None:
    """The listening socket, None when nobody may ask. ListenError."""
    return listen(config.collector.ask_host, config.collector.ask_port)[0] if config.collector.ask_port else None


class Asked:
    """The server of questions, at work or not."""

    def __init__(self) -> None:
        self._server: AskServer | None = None

    async def start(self, config: Config, listening: socket.socket | None) -> None:
        """Answers on that socket from now on, and on no other. ConfigError when there is no key."""
        self.close()
        if listening is not None:
            self._server = AskServer(config.collector.domains[0], config.data_dir / RECEIPTS_FILE, testers_key(config))
            await self._server.start(listening)

    def renew(self, config: Config) -> None:
        """Answers by a reloaded configuration. ConfigError."""
        if self._server is not None and config.collector.domains:
            self._server.domain, self._server.key = config.collector.domains[0], testers_key(config)

    def close(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
