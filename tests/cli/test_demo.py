"""`posthouse demo`: works on any machine at once, and leaves nothing."""

import os
import signal
import subprocess
import sys

DEMO = [sys.executable, "-m", "posthouse", "demo"]


def test_the_demo_shows_a_mail_relayed_a_stranger_refused_the_queue_and_why(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(DEMO, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = done.stdout
    assert "Received: from client.example ([127.0.0.1])" in shown
    assert shown.count("\n    550 5.7.1 ") == 3
    assert "$ posthouse queue list" in shown
    assert "bob@away.example  deferred" in shown
    assert "let in by trusted-network" in shown
    assert "It has left the queue." in shown
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_told_to_stop_leaves_nothing_either(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        while b"are running" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
