"""docs/configuration.md and docs/commands.md say what the program has, asked in another way than they are written."""

import re
from pathlib import Path

import click
import msgspec
import pytest

from posthouse.cli.options import ExitStatus
from posthouse.cli.program import COMMANDS, program
from posthouse.config import settings

DOCS = Path(__file__).parents[2] / "docs"

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "The top of the file": settings.Config,
    "[[listener]]": settings.ListenerSettings,
    "[[listener]] tls": settings.TlsSettings,
    "[[listener]] lab": settings.LabSettings,
    "[relay]": settings.RelaySettings,
    "[[route]]": settings.RouteSettings,
    "[[route]] login": settings.LoginSettings,
    "[limits]": settings.LimitSettings,
    "[retry]": settings.RetrySettings,
    "[resolver]": settings.ResolverSettings,
    "[history]": settings.HistorySettings,
    "[log]": settings.LogSettings,
    "[metrics]": settings.MetricsSettings,
    "[collector]": settings.CollectorSettings,
    "[tester]": settings.TesterSettings,
    "[web]": settings.WebSettings,
    "[watch]": settings.WatchSettings,
}
NOT_KEYS = {"source"}
SPELT = {
    ("The top of the file", "listeners"): "listener",
    ("The top of the file", "routes"): "route",
    ("[[listener]]", "host"): "address",
    ("[[listener]]", "port"): "address",
    ("[metrics]", "host"): "listen",
    ("[collector]", "ask_host"): "ask",
    ("[collector]", "ask_port"): "ask",
    ("[metrics]", "port"): "listen",
    **{("[web]", field): "listen" for field in ("host", "port", "is_on")},
    **{("[web]", field): "call_listen" for field in ("call_host", "call_port", "is_call_on")},
}


def chapter(page: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no heading {title!r}"
    return found[1]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_setting_stands_under_its_section(title: str) -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", chapter((DOCS / "configuration.md").read_text(), title), re.MULTILINE))
    fields = set(SECTIONS[title].__struct_fields__) - NOT_KEYS
    assert {SPELT.get((title, field), field) for field in fields} == listed


def test_every_settings_struct_is_looked_at() -> None:
    structs = {each for each in vars(settings).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)}
    assert structs - {msgspec.Struct} == set(SECTIONS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_its_options_stand_on_the_page(name: str) -> None:
    page = (DOCS / "commands.md").read_text()
    text = chapter(page, f"posthouse {name}")
    context = click.Context(program, info_name="posthouse")
    command = program.get_command(context, name)
    assert command is not None
    if name == "sendmail":
        return  # its options are sendmail(1)'s, told apart before click is loaded
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.opts[0] in text
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            assert f" posthouse {name} {inner}\n" in page


def test_every_exit_status_is_explained() -> None:
    page = (DOCS / "commands.md").read_text()
    assert {int(status) for status in re.findall(r"^\| (\d) \| ", page, re.MULTILINE)} == {
        int(each) for each in ExitStatus
    }
    assert "sysexits" in page
