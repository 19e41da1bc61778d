"""Many inputs, fast: the corpus cut up, mixed and bent at random, and the engine held to its promises with each.

`python fuzz/mutations.py --count 1000000 --seed 7`. Where `smtp_server.py` follows what an input reaches, which costs seven times
as much for each, this one goes by numbers; it needs nothing but Posthouse. The same seed makes the same inputs. Exit status: 0, or
1 with the input that broke a promise, as Python prints it.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator

from smtp_server import CORPUS, MOST_OCTETS, check

WORDS = (
    b"EHLO a\r\n",
    b"HELO a\r\n",
    b"LHLO a\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"MAIL FROM:<>\r\n",
    b"RCPT TO:<a@b>\r\n",
    b"RCPT TO:<n@b>\r\n",
    b"DATA\r\n",
    b".\r\n",
    b"\r\n.\r\n",
    b"..\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"QUIT\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 4\r\nabcd",
    b"BDAT 5 LAST\r\n12345",
    b"STARTTLS\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"VRFY a\r\n",
    b"HELP\r\n",
    b" SIZE=10",
    b" SIZE=999",
    b" BODY=8BITMIME",
    b" SMTPUTF8",
    b" NOTIFY=NEVER",
    b" RET=HDRS",
    b" ORCPT=rfc822;a@b",
    b" ENVID=x+20",
    b"Subject: x\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\r\n",
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\x00",
    b"<",
    b">",
    b'"',
    b"\\",
    b"@",
    b":",
    b",",
    b"[127.0.0.1]",
    b"[IPv6:::1]",
    b"=",
    b"*",
    b"\xc3\xa4",
    b"\xff",
    b"x" * 100,
    b"y" * 600,
)
"""What a client may say, and what parsers trip over."""

_Bend = Callable[[random.Random, bytearray, list[bytes]], None]


def _change(rng: random.Random, octets: bytearray, _corpus: list[bytes]) -> None:
    if octets:
        octets[rng.randrange(len(octets))] = rng.randrange(256)


def _drop(rng: random.Random, octets: bytearray, _corpus: list[bytes]) -> None:
    at = rng.randrange(len(octets) + 1)
    del octets[at : at + rng.randrange(1, 20)]


def _double(rng: random.Random, octets: bytearray, _corpus: list[bytes]) -> None:
    at = rng.randrange(len(octets) + 1)
    octets[at:at] = octets[at : at + rng.randrange(1, 80)] * rng.randrange(1, 4)


def _say(rng: random.Random, octets: bytearray, _corpus: list[bytes]) -> None:
    at = rng.randrange(len(octets) + 1)
    octets[at:at] = rng.choice(WORDS)


def _splice(rng: random.Random, octets: bytearray, corpus: list[bytes]) -> None:
    other = rng.choice(corpus)
    octets[rng.randrange(len(octets) + 1) :] = other[rng.randrange(len(other)) :]


def _shuffle_lines(rng: random.Random, octets: bytearray, _corpus: list[bytes]) -> None:
    lines = bytes(octets).splitlines(keepends=True)
    rng.shuffle(lines)
    octets[:] = b"".join(lines)


_BENDS: tuple[_Bend, ...] = (_change, _change, _drop, _double, _say, _say, _say, _splice, _shuffle_lines)


def inputs(seed: int, count: int) -> Iterator[bytes]:
    """So many inputs for `smtp_server.check`, always the same for a seed."""
    rng = random.Random(seed)
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    for _ in range(count):
        octets = bytearray(rng.choice(corpus))
        for _ in range(rng.randrange(1, 9)):
            rng.choice(_BENDS)(rng, octets, corpus)
        octets[:2] = rng.randbytes(2)  # the settings, and how the rest is cut
        yield bytes(octets[: MOST_OCTETS + 2])


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    told = time.monotonic()
    for number, octets in enumerate(inputs(options.seed, options.count), 1):
        try:
            check(octets)
        except Exception as error:
            print(f"#{number} of seed {options.seed} broke a promise ({error!r}): {octets!r}", file=sys.stderr)
            raise
        if time.monotonic() - told > 1:
            told = time.monotonic()
            print(f"#{number}", file=sys.stderr, flush=True)
    print(f"Done {options.count} runs", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
