"""Room for connections: each takes a descriptor, and the usual soft limit of 1,024 is for programs that use select()."""

import contextlib
import resource

MOST = 1 << 20


def raise_descriptor_limit() -> int:
    """Raises the soft limit to the hard one, for this process and its children; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a hardened unit may not set limits: LimitNOFILE= does it there
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
