"""Our own sink and source as a benchmark starts and reads them; see own_sink.py and own_source.py."""

import array
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from load import QUIET_SECONDS, answers, wait_for
from own_sink import COUNTS, Behaviour

from peer_programs import free_port, wait_until

_HERE = Path(__file__).resolve().parent


class Certificate(msgspec.Struct, frozen=True):
    """A PEM file with a certificate, and one with its key."""

    certificate: Path
    key: Path


class OwnSink:
    """A next hop of our own, for as long as `close` is not called."""

    def __init__(
        self,
        port: int,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        behaviour: Behaviour = Behaviour.WELL,
        certificate: Certificate | None = None,
    ) -> None:
        self.port = port
        self._directory = Path(tempfile.mkdtemp(prefix="posthouse-sink-"))
        self._counts, self._times = self._directory / "counts", self._directory / "times"
        self._counts.write_bytes(bytes(COUNTS.size))
        command = [sys.executable, str(_HERE / "own_sink.py"), "--port", str(port), "--addresses", ",".join(addresses)]
        command += ["--counts", str(self._counts), "--times", str(self._times), "--behaviour", behaviour]
        if certificate is not None:
            command += ["--certificate", str(certificate.certificate), "--key", str(certificate.key)]
        self._process = subprocess.Popen(command)
        if behaviour in {Behaviour.WELL, Behaviour.STALLS}:
            wait_until(lambda: self._process.poll() is not None or answers(port, addresses[0]), "the sink to be ready")

    def _read(self) -> tuple[int, int, int]:
        return COUNTS.unpack(self._counts.read_bytes())

    def count(self) -> int:
        """Messages taken so far."""
        return self._read()[0]

    def recipients(self) -> int:
        """Recipients of these messages."""
        return self._read()[1]

    def last_at(self) -> float:
        """When the last message had come, by the monotonic clock."""
        return self._read()[2] / 1e9

    def wait_for(self, count: int) -> float:
        """The moment when so many have arrived. TimeoutError when nothing comes any more."""
        return wait_for(self, count, QUIET_SECONDS)

    def close(self) -> list[float]:
        """Ends it. How many seconds each message of our own source was under way, in the order of arrival."""
        self._process.terminate()
        self._process.wait()
        times = array.array("d")
        with contextlib.suppress(FileNotFoundError):
            times.frombytes(self._times.read_bytes())
        for file in self._directory.iterdir():
            file.unlink()
        self._directory.rmdir()
        return times.tolist()


@contextlib.contextmanager
def own_sink(
    port: int = 0, addresses: tuple[str, ...] = ("127.0.0.1",), behaviour: Behaviour = Behaviour.WELL
) -> Iterator[OwnSink]:
    """A sink that is there for a block."""
    sink = OwnSink(port or free_port(), addresses, behaviour)
    try:
        yield sink
    finally:
        sink.close()


class Sent(msgspec.Struct, frozen=True):
    """What our own source measured. `answer` is the time from the end of data to the 250, `whole` that from when a message
    was due to its 250, the connection included where it has one of its own."""

    count: int
    seconds: float
    answer_p50_ms: float
    answer_p99_ms: float
    answer_most_ms: float
    whole_p50_ms: float
    whole_p99_ms: float


def start_source(port: int, *options: str) -> subprocess.Popen[bytes]:
    """Our own source, at work; `finish` has its result."""
    command = [sys.executable, str(_HERE / "own_source.py"), "--port", str(port), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def finish(source: subprocess.Popen[bytes]) -> Sent:
    """Waits for its end. RuntimeError when it did not get all messages through."""
    out, _ = source.communicate(timeout=600)
    if source.returncode:
        raise RuntimeError("our own source did not get all its messages through")
    return msgspec.convert(json.loads(out), Sent)


def send(port: int, *options: str) -> Sent:
    """Sends, and waits for the end."""
    return finish(start_source(port, *options))
