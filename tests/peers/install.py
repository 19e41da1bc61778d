"""Unpacks the real servers and clients that the peer tests talk to, beside this machine's own: `python tests/peers/install.py`.

Mail servers exclude one another as system packages, and a test must not change the machine's own mail system. So nothing is
installed: the Debian packages are downloaded and unpacked below .cache/peers (POSTHOUSE_PEERS_DIR overrides), one directory a
peer, with the libraries that this machine lacks. Nothing starts and no maintainer script runs. Two traces stay outside: the system
users that Exim, OpenSMTPD and Dovecot want to find by name, and the one module that Dovecot loads from a path that was compiled in.

Run again, it does nothing, quickly. It wants root and apt; without root it says so and ends well, since the tests of the peers
then skip by name. It needs no more than the standard library: it runs before anything else is there.
"""

import filecmp
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS_DIRECTORY = Path(os.environ.get("POSTHOUSE_PEERS_DIR", CHECKOUT / ".cache" / "peers"))

PEERS = {
    "postfix": ("postfix",),
    "exim": ("exim4-daemon-light",),
    "opensmtpd": ("opensmtpd",),
    "sendmail": ("sendmail-bin", "sendmail-base", "sendmail-cf", "m4"),
    "dovecot": ("dovecot-core", "dovecot-lmtpd"),
    "knot": ("knot",),
    "swaks": ("swaks", "libnet-ssleay-perl", "libio-socket-ssl-perl"),
    "msmtp": ("msmtp",),
    "mailx": ("bsd-mailx",),
    "nftables": ("nftables",),
    "nmap": ("nmap", "nmap-common", "lua-lpeg"),
    "git-email": ("git-email", "libmailtools-perl"),
    "chromium": ("chromium-headless-shell", "chromium-common", "fonts-dejavu-core"),
    "netcat": ("netcat-openbsd",),
    "curl": ("curl",),
}
"""The peers, each with the Debian packages that hold it; libraries are found by asking apt."""

LIBRARY = re.compile(r"lib|perl")
SYSTEM_USERS = ("Debian-exim", "opensmtpd", "opensmtpq", "dovecot", "dovenull")
DOVECOT_MODULE = Path("/usr/lib/dovecot/modules/libssl_iostream_openssl.so")
RECIPE = "3"  # goes up when what this program makes of a package changes


def apt(*arguments: str, directory: Path | None = None) -> str:
    """Standard output of an apt-get command. CalledProcessError, with its words shown, when it fails."""
    done = subprocess.run(
        ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def missing_libraries(packages: tuple[str, ...]) -> list[str]:
    """What apt would have to install before these packages would run, libraries only."""
    plan = apt("install", "--simulate", "--no-install-recommends", *packages)
    wanted = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
    return [name for name in wanted if LIBRARY.match(name) and name not in packages]


def unpack(peer: str) -> None:
    """Downloads one peer and unpacks it. An interrupted one is begun again, since the stamp comes last."""
    root = PEERS_DIRECTORY / peer
    stamp = root / ".unpacked"
    packages = PEERS[peer]
    recipe = f"{RECIPE} {' '.join(packages)}\n"
    if stamp.is_file() and stamp.read_text() == recipe:
        return
    print(f"peers: unpacking {peer} into {root}", file=sys.stderr)
    shutil.rmtree(root, ignore_errors=True)
    archives = root / ".archives"
    archives.mkdir(parents=True)
    apt("download", *packages, *missing_libraries(packages), directory=archives)
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
    shutil.rmtree(archives)
    # A set-id program ignores LD_LIBRARY_PATH, so it would not find what was unpacked beside it; nor should one lie about here.
    subprocess.run(["chmod", "--recursive", "ug-s", root], check=True)
    stamp.write_text(recipe)


def make_users() -> None:
    """Debian's Exim, OpenSMTPD and Dovecot look up their users by name before they read any configuration."""
    for name in SYSTEM_USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
            subprocess.run([*command, "--shell", "/usr/sbin/nologin", name], check=True)


def place_dovecot_module() -> None:
    """Dovecot loads its TLS module from below /usr/lib, wherever it runs. A Dovecot of the machine's own is left alone."""
    unpacked = PEERS_DIRECTORY / "dovecot" / str(DOVECOT_MODULE.relative_to("/"))
    ours = DOVECOT_MODULE.parent / ".placed-for-tests"
    if DOVECOT_MODULE.exists() and not ours.exists():
        return
    if DOVECOT_MODULE.exists() and filecmp.cmp(unpacked, DOVECOT_MODULE, shallow=False):
        return
    DOVECOT_MODULE.parent.mkdir(parents=True, exist_ok=True)
    ours.touch()
    fresh = DOVECOT_MODULE.with_name(f".{os.getpid()}")
    shutil.copyfile(unpacked, fresh)
    fresh.replace(DOVECOT_MODULE)


def is_known(peer: str) -> bool:
    """Whether this distribution has the peer at all: Ubuntu has Chromium as a snap only."""
    asked = subprocess.run(["apt-cache", "show", *PEERS[peer]], capture_output=True, check=False)
    if asked.returncode:
        print(f"peers: this distribution has no {' or '.join(PEERS[peer])}: what needs it is skipped", file=sys.stderr)
    return not asked.returncode


def unpack_all() -> None:
    """Every peer; apt's lists are brought up to date only when a download fails with those that are there."""
    try:
        for peer in PEERS:
            unpack(peer)
    except subprocess.CalledProcessError:
        apt("update")
        for peer in PEERS:
            if is_known(peer):
                unpack(peer)
    make_users()
    place_dovecot_module()


def main() -> int:
    """0 when every peer is there, or none can be; 1 when unpacking failed."""
    if os.geteuid() != 0:
        print("peers: not root, so the tests that talk to real servers will be skipped", file=sys.stderr)
        return 0
    if shutil.which("apt-get") is None:
        print("peers: no apt-get here, so the tests that talk to real servers will be skipped", file=sys.stderr)
        return 0
    try:
        unpack_all()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"peers: could not unpack the real servers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
