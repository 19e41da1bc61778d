"""What the pages tell people to type, write or open is there."""

import re
import tomllib
from pathlib import Path

import pytest

from posthouse.cli.program import COMMANDS
from posthouse.config.keys import SECTIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
page = pytest.mark.parametrize("path", PAGES, ids=[each.name for each in PAGES])


@page
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (path.parent / target).exists(), target


@page
def test_commands_exist(path: Path) -> None:
    text = path.read_text()
    typed = re.findall(r"(?:\./|bin/|^[$#] |`)posthouse ([a-z]+)\b", text, re.MULTILINE)
    assert set(typed) <= set(COMMANDS) | {"rmail"}, path.name


@page
def test_keys_in_examples_exist(path: Path) -> None:
    for example in re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL):
        for name, value in tomllib.loads(example).items():
            assert name in SECTIONS[""].names, name
            tables = value if isinstance(value, list) else [value]
            for table in tables:
                if isinstance(table, dict) and name != "aliases":
                    assert set(table) <= set(SECTIONS[name].names), f"{path.name}: [{name}]"


def test_code_named_by_the_architecture_page_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {each.name for each in (ROOT / "src" / "posthouse").iterdir() if (each / "__init__.py").exists()}
    named = re.findall(r"`((?:{})/[\w/.]*)`".format("|".join(rooms)), text)
    assert len(named) > 20
    for each in named:
        assert (ROOT / "src" / "posthouse" / each).exists(), each
    table = text.split("## The rooms")[1].split("## Processes")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == rooms
