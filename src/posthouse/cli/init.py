"""`posthouse init`: writes a commented configuration file, proved before it is there. Never overwrites."""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from posthouse.cli.options import as_typed, config_option, fail
from posthouse.config.compose import Wishes, compose_config
from posthouse.config.next_hop import read_next_hop
from posthouse.config.search import HERE, machine_name
from posthouse.config.values import endpoint, host_name, mail_address, split_port, text
from posthouse.net.listen import address_text

PASSWORD_FILE = "smart-host.password"  # noqa: S105 - the name of a file


@click.command(name="init", help="Write a commented configuration file.")
@click.option("--hostname", metavar="NAME", help="What the server calls itself.  [default: the machine's name]")
@click.option("--data-dir", metavar="DIR", help="Where the queue is.  [default: the user's state directory]")
@click.option("--postmaster", metavar="ADDRESS", help="Who gets mail for postmaster and the usage report.")
@click.option("--listen", multiple=True, metavar="ADDR:PORT", help="Where to listen.  [default: 127.0.0.1:2525]")
@click.option("--trust", multiple=True, metavar="NETWORK", help="Who else may relay to anywhere without a login.")
@click.option("--gateway-as-stranger", multiple=True, metavar="ADDR", help="A gateway in a trusted network: no grant.")
@click.option(
    "--gateway-trusted", multiple=True, metavar="ADDR", help="A gateway in a trusted network: a grant as well."
)
@click.option("--local-domain", multiple=True, metavar="DOMAIN", help="Final destination here.")
@click.option(
    "--deliver-to", metavar="URL", help="Who delivers local domains.  [default: Maildirs in the data directory]"
)
@click.option("--relay-domain", multiple=True, metavar="DOMAIN", help="Relayed there for anyone.")
@click.option("--relay-to", metavar="URL", help="The server of the relay domains, smtp://HOST:PORT.  [default: by MX]")
@click.option(
    "--smart-host", metavar="HOST[:PORT]", help="Where all else goes (25; 587 with a login).  [default: by MX]"
)
@click.option("--smart-host-user", metavar="USER", help="The login there; its password is asked for.")
@click.option("--smart-host-password-stdin", is_flag=True, help="Read that password from standard input.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@config_option
def command(config_path: Path | None, yes: bool, smart_host_password_stdin: bool, **given: object) -> None:
    """2 when the file exists, or would be wrong or an open relay: then nothing is written."""
    path = config_path or HERE
    if path.exists():
        fail(f"{path} exists already and is not overwritten; edit it, or name another file with --config")
    wishes = _wishes(given)
    _prove(compose_config(_filled(wishes, path)), path)  # before anybody answers questions for nothing
    if not yes and not smart_host_password_stdin and sys.stdin.isatty():
        wishes = _ask(wishes)
    password = _password(wishes, from_stdin=smart_host_password_stdin) if wishes.smart_host_user else ""
    toml = compose_config(_filled(wishes, path))
    _prove(toml, path)
    _write(path, toml, password)
    config = "" if path == HERE else f" --config {path}"
    click.echo(as_typed(f"{path} is written, and no stranger can relay by it. Start with `posthouse serve{config}`"))


def _wishes(given: dict[str, object]) -> Wishes:
    """The flags; who names neither network nor address gets what the embedded default has."""

    def many(key: str) -> tuple[str, ...]:
        found = given[key]
        return tuple(map(str, found)) if isinstance(found, tuple) else ()

    def one(key: str) -> str:
        return str(given[key] or "")

    for option, needed in (
        ("smart_host_user", "smart_host"),
        ("deliver_to", "local_domain"),
        ("relay_to", "relay_domain"),
    ):
        if given[option] and not given[needed]:
            fail(f"--{option.replace('_', '-')} needs --{needed.replace('_', '-')}")
    default = Wishes()
    return Wishes(
        hostname=one("hostname"),
        data_dir=one("data_dir"),
        postmaster=one("postmaster"),
        listen=many("listen") or default.listen,
        trusted_networks=(*default.trusted_networks, *many("trust")),
        gateways_as_strangers=many("gateway_as_stranger"),
        gateways_trusted=many("gateway_trusted"),
        local_domains=many("local_domain"),
        deliver_to=one("deliver_to"),
        relay_domains=many("relay_domain"),
        relay_to=one("relay_to"),
        smart_host=_with_port(one("smart_host"), one("smart_host_user")),
        smart_host_user=one("smart_host_user"),
    )


def _with_port(smart_host: str, user: str) -> str:
    """The port that is meant where none is given: submission for who logs in (RFC 6409 3.1)."""
    if not smart_host or "://" in smart_host:
        return smart_host
    try:
        host, port = split_port(smart_host, 587 if user else 25)
    except ValueError:
        return smart_host  # what is wrong with it is said when the file is proved
    return address_text(host, port)


def _ask(wishes: Wishes) -> Wishes:
    """A few questions, for what no flag has answered; an empty answer leaves it out. The login comes last, its password next."""
    click.echo("Enter takes what stands in brackets.", err=True)
    hostname = wishes.hostname or _question("Host name", machine_name(), host_name)
    listen = wishes.listen
    if listen == Wishes().listen:
        listen = tuple(_question("Listen on", listen[0], _addresses).split())
    postmaster = wishes.postmaster or _question("Who gets mail for postmaster (an address)", "", mail_address)
    smart_host = wishes.smart_host or _question(
        "Smart host for outgoing mail, HOST:PORT (none: by MX)", "", _smart_host
    )
    user = wishes.smart_host_user or (_question("Login there (none: no login)", "", text) if smart_host else "")
    return msgspec.structs.replace(
        wishes,
        hostname=hostname,
        listen=listen,
        smart_host=_with_port(smart_host, user),
        smart_host_user=user,
        postmaster=postmaster,
    )


def _question(words: str, default: str, check: Callable[[str], object]) -> str:
    """Asks until the answer can stand in a configuration: `check` raises ValueError for one that can't."""

    def checked(answer: str) -> str:
        answer = answer.strip()
        try:
            if answer:
                check(answer)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        return answer

    answer: str = click.prompt(words, default=default, show_default=bool(default), value_proc=checked, err=True)
    return answer


def _addresses(answer: str) -> None:
    for one in answer.split():
        endpoint(least_port=0)(one)


def _smart_host(answer: str) -> None:
    read_next_hop(answer if "://" in answer else f"smtp://{answer}", Path.cwd())


def _password(wishes: Wishes, *, from_stdin: bool) -> str:
    if from_stdin:
        found = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        found = str(
            click.prompt(f"Password of {wishes.smart_host_user} at {wishes.smart_host}", hide_input=True, err=True)
        )
    else:
        fail("standard input is no terminal to ask for the smart host's password; use --smart-host-password-stdin")
    if not found:
        fail("the smart host's password is empty")
    return found


def _filled(wishes: Wishes, path: Path) -> Wishes:
    """With the file of the password, and with Maildirs for local domains that nobody else delivers, one a local part."""
    from posthouse.config.search import default_data_dir  # noqa: PLC0415

    if wishes.smart_host_user:
        wishes = msgspec.structs.replace(wishes, password_file=PASSWORD_FILE)
    if not wishes.local_domains or wishes.deliver_to:
        return wishes
    data_dir = path.absolute().parent / wishes.data_dir if wishes.data_dir else default_data_dir(path)
    return msgspec.structs.replace(wishes, deliver_to=f"maildir:{data_dir}/mail/{{local_part}}")


def _prove(toml: str, path: Path) -> None:
    """What is about to be written can be read, and opens nothing."""
    from posthouse.config import ConfigError, load_text  # noqa: PLC0415
    from posthouse.serve.closure import examine  # noqa: PLC0415
    from posthouse.serve.rules import rules_of  # noqa: PLC0415

    try:
        closure = examine(rules_of(load_text(toml, path)))
    except ConfigError as error:
        words = re.sub(r"^\d+: ", "", str(error).removeprefix(f"{path}:"))  # a line of a file that is not there
        fail(f"nothing is written: {words}")
    if not closure.is_closed:
        remedy = " (Here: --gateway-as-stranger or --gateway-trusted.)" if closure.masked else ""
        fail(f"nothing is written, for this would make an open relay: {' '.join(closure.sentences)}{remedy}")


def _write(path: Path, toml: str, password: str) -> None:
    """Both files or none; the configuration appears whole, and only where nothing was."""
    secret = path.parent / PASSWORD_FILE
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if password:
            fd = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as out:
                out.write(f"{password}\n")
        try:
            new.write_text(toml)
            os.link(new, path)  # unlike a rename, refuses when somebody made the file meanwhile
        except OSError:
            if password:
                secret.unlink()
            raise
    except FileExistsError as error:
        fail(f"{error.filename2 or error.filename} exists already and is not overwritten; nothing is changed")
    except OSError as error:
        fail(f"{path} can't be written: {error.strerror} ({error.filename})")
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
