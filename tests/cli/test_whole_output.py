"""What a command prints arrives whole, however slowly it is read."""

import os
import subprocess
import sys
import time

import pytest

SIZE = 300_000
PROGRAM = f"""
import signal, sys
from posthouse.cli.program import write_whole
write_whole()
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
sys.stderr.write("writing")
sys.stderr.flush()
sys.stdout.write("x" * {SIZE} + "\\n")
sys.stdout.flush()
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_output_into_a_slow_pipe_is_whole_though_signals_interrupt_it(unbuffered: str) -> None:
    variables = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(7) == b"writing"
        time.sleep(0.3)  # the pipe is full, and some signals come
        output, errors = process.communicate(timeout=30)
    assert (len(output), errors) == (SIZE + 1, b"")
