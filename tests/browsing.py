"""Debian's Chromium, headless, driven by Playwright: what a visitor sees, and whether everybody can use it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from peer_programs import PEERS_DIRECTORY, require_peer, server_directory

_FONTS = """\
<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias><cachedir>{cache}</cachedir></fontconfig>
"""


def _variables(directory: Path) -> dict[str, str | float | bool]:
    """The unpacked libraries and fonts, and a home that is not ours."""
    root = PEERS_DIRECTORY / "chromium"
    libraries = [*root.glob("usr/lib/*-linux-*"), *root.glob("usr/lib/*-linux-*/*/")]
    fonts = directory / "fonts.conf"
    fonts.write_text(_FONTS.format(fonts=root / "usr/share/fonts", cache=directory / "cache"))
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "FONTCONFIG_FILE": str(fonts),
        "HOME": str(directory),
    }


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for as long as the block; it reaches loopback alone."""
    require_peer("chromium")
    with server_directory("chromium") as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=PEERS_DIRECTORY / "chromium/usr/lib/chromium/chromium-headless-shell",
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            env=_variables(directory),
        )
        try:
            yield browser
        finally:
            browser.close()


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds on a page, a sentence each: rules of WCAG 2.2 A and AA, and best practice."""
    found: dict[str, Any] = Axe().run(page).response
    return [
        f"{fault['id']}: {fault['help']}: {'; '.join(node['html'][:120] for node in fault['nodes'][:3])}"
        for fault in found["violations"]
    ]
