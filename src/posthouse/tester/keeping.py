"""The tester's corner of the data directory: made for whoever owns that, even when root runs a command first.

Else `sudo posthouse test` would make files that the server, which has given up root, could never open.
"""

import contextlib
import os
from pathlib import Path


def make_corner(directory: Path) -> None:
    """The directory, closed to others, for the owner of the one around it. OSError."""
    if directory.is_dir():
        return
    directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was faster
        directory.mkdir(mode=0o700)
        hand_over(directory)


def hand_over(path: Path) -> None:
    """What root has made belongs to the owner of the directory that it lies in. OSError."""
    if os.geteuid() == 0:
        around = path.parent.stat()
        if path.stat().st_uid != around.st_uid:
            os.chown(path, around.st_uid, around.st_gid, follow_symlinks=False)
