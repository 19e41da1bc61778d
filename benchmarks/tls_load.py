"""What our own source and sink do by themselves, with no server between them: the ceiling of a cell that is measured with them.

    benchmarks/tls [--count 20000] [--sessions 20] [--size 4096] [--plain] [--json]

smtp-source and smtp-sink have no TLS, so the cell with STARTTLS on both sides is measured with our own two ends, the same for both
servers. A server whose figure comes near to this one is not measured: its ends are.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from own_ends import Certificate, OwnSink, send

from peer_programs import free_port
from posthouse_server import write_certificate


def make_certificate(directory: Path) -> Certificate:
    """One for the server and the sink: ECDSA P-256, which costs a handshake half of what RSA does."""
    certificate, key, _ = write_certificate(directory)
    return Certificate(certificate, key)


def ceiling(count: int, sessions: int, size: int, tls: bool = True) -> float:
    """Messages a second from our own source straight to our own sink."""
    with tempfile.TemporaryDirectory(prefix="posthouse-tls-") as directory:
        sink = OwnSink(free_port(), certificate=make_certificate(Path(directory)) if tls else None)
        try:
            load = ["--sessions", str(sessions), "--count", str(count), "--size", str(size)]
            sent = send(sink.port, *load, *(["--tls"] if tls else []))
            sink.wait_for(count)
        finally:
            sink.close()
    return count / sent.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rates = [ceiling(options.count, options.sessions, options.size, not options.plain) for _ in range(options.runs)]
    rate = statistics.median(rates)
    if options.json:
        print(json.dumps({"rate": rate, "rates": rates}))
    else:
        print(f"source straight to sink, {'in clear' if options.plain else 'under TLS'}: {rate:,.0f} messages/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
