"""Bind, then drop: root binds the ports and becomes `user` for good before the first octet from outside is read."""

import ctypes
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38


class PrivilegeError(Exception):
    """The user can't be found or become; the text is one sentence with the remedy."""


class Identity:
    """Who we shall be: the uid and gid of `user`, or of this process where none is named or no change is possible."""

    def __init__(self, user: str) -> None:
        self.uid, self.gid, self.name = os.geteuid(), os.getegid(), user
        self.must_drop = False
        if not user:
            return
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise PrivilegeError(
                f'there is no user {user!r} on this machine: create it, or change the key "user"'
            ) from None
        if os.geteuid() == 0:
            self.uid, self.gid = entry.pw_uid, entry.pw_gid
            self.must_drop = entry.pw_uid != 0
        elif entry.pw_uid != os.geteuid():
            remedy = "start as root" if user == "root" else f"start as root or as {user}"
            raise PrivilegeError(f'"user" is {user!r}, but only root can become another user: {remedy}')

    @classmethod
    def of_owner(cls, path: Path) -> "Identity":
        """The owner of `path`, where root acts in the place of the server's user; else who we are."""
        identity = cls("")
        if os.geteuid() == 0 and path.exists():
            found = path.stat()
            identity.uid, identity.gid = found.st_uid, found.st_gid
        return identity

    def give(self, path: Path) -> None:
        """Makes `path` theirs, where it is not anyway (a hardened unit may not even ask to chown). OSError."""
        if self.uid != os.geteuid():
            os.chown(path, self.uid, self.gid)

    def assume(self) -> None:
        """Gives up root for good: groups, gid, uid, and no new privilege by execve. PrivilegeError."""
        if not self.must_drop:
            return
        try:
            os.initgroups(self.name, self.gid)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            raise PrivilegeError(f"can't become {self.name}: {error.strerror}") from error
        forbid_new_privileges()
        if 0 in os.getresuid() or 0 in os.getresgid():
            raise PrivilegeError(f"became {self.name}, yet root is still within reach: refusing to go on")

    def prove_readable(self, files: Iterable[str]) -> None:
        """The program is there for the user too: what is imported later would be missing one day. PrivilegeError."""
        for file in files:
            if self.must_drop and not os.access(file, os.R_OK):
                raise PrivilegeError(f'"user" is {self.name!r}, who can\'t read {file}: install it where everybody can')


def forbid_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS: no set-uid program gives us anything any more. PrivilegeError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError(f"the kernel refuses no_new_privs: {os.strerror(ctypes.get_errno())}")
