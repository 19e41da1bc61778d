"""sd_notify(3): tells systemd that we are ready, reload, stop, or live. Nothing happens where nobody listens."""

import os
import socket
import time


def notify(*assignments: str) -> bool:
    """Sends "READY=1" and the like in one datagram; False when there is no NOTIFY_SOCKET or it takes nothing."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as one:
            one.sendto("\n".join(assignments).encode(), address)
    except OSError:
        return False
    return True


def notify_reloading() -> bool:
    """RELOADING=1 wants the moment, so that systemd can tell our READY=1 from an older one."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float:
    """How often systemd wants to hear WATCHDOG=1 at most, 0.0 when it does not."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    microseconds = os.environ.get("WATCHDOG_USEC", "0")
    if pid != str(os.getpid()) or not microseconds.isdigit():
        return 0.0
    return int(microseconds) / 1_000_000
