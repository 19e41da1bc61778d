"""A visitor with a real browser: with script and without, with the keyboard alone, by the tree that readers of screens read."""

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from browsing import accessibility_faults, chromium
from peer_programs import free_port
from peer_servers import postfix_next_hop
from posthouse_server import ADDRESS
from visiting import Site, host, refusing, silent, site

pytestmark = pytest.mark.peer
SECONDS = 90.0
OPEN = {"mynetworks": "0.0.0.0/0", "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site(web="tests_per_address = 1000\nprivate_hosts = true") as found:
        yield found


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A visitor; a test may ask for one without script or in the dark."""
    options = getattr(request, "param", {})
    made = browser.new_context(**options)
    made.set_default_timeout(SECONDS * 1000)
    yield made
    made.close()


def faults_of(page: Page) -> list[str]:
    """Errors that the page's own script or the policy bring up from now on."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    return found


def test_visitor_watches_a_closed_postfix_and_an_open_one(browser: Browser) -> None:
    port = free_port(ADDRESS)
    for settings, title, word in (
        ({}, "Closed to strangers", "refused"),
        (OPEN, "An open relay", "accepted, delivery not observed"),
    ):
        with postfix_next_hop(["own.test"], port, ADDRESS, settings=settings), site(mail_port=port) as web:
            page = browser.new_page()
            faults = faults_of(page)
            page.goto(web.url)
            page.get_by_role("button", name=f"Test {ADDRESS}").click()
            expect(page.get_by_role("status")).to_contain_text("Under way", timeout=SECONDS * 1000)
            expect(page.locator("#dialogue")).to_contain_text("RCPT TO:", timeout=SECONDS * 1000)
            verdict = page.get_by_role("heading", name=title)
            expect(verdict).to_be_visible(timeout=SECONDS * 1000)
            expect(page.get_by_role("status")).to_have_text(title)
            cases = page.get_by_role("table", name=f"Cases on port {port}")
            assert cases.get_by_role("row").count() > 60
            expect(cases.locator("tbody tr").first).to_contain_text(word)
            assert page.get_by_role("heading", name="Fix this first").count() == (1 if "open" in title else 0)
            assert faults == []
            address = page.url
            page.goto(address)
            expect(page.get_by_role("heading", name=title)).to_be_visible()
            page.close()


@pytest.mark.parametrize("context", [{"java_script_enabled": False}], indirect=True)
def test_without_script_the_verdict_comes_on_a_page_that_grows(context: BrowserContext, web: Site) -> None:
    with host(refusing(), web.mail_port, ADDRESS):
        page = context.new_page()
        page.goto(web.url)
        page.get_by_role("button", name=f"Test {ADDRESS}").click(no_wait_after=True)
        expect(page.get_by_role("heading", name="Closed to strangers")).to_be_visible(timeout=SECONDS * 1000)
        assert page.get_by_role("row").count() > 60


def test_keyboard_alone_is_enough(context: BrowserContext, web: Site) -> None:
    with host(refusing(), web.mail_port, ADDRESS):
        page = context.new_page()
        page.goto(web.url)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "BUTTON":
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus can be seen"
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Closed to strangers")).to_be_visible(timeout=SECONDS * 1000)


def test_visitor_shows_control_of_a_host_by_its_greeting(context: BrowserContext, web: Site) -> None:
    page = context.new_page()
    page.goto(web.url)
    page.get_by_label("Host name or address").fill("not a host!")
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("alert")).to_contain_text("neither a host name nor an address")
    assert page.get_by_label("Host name or address").input_value() == "not a host!"
    assert accessibility_faults(page) == []
    page.get_by_label("Host name or address").fill("127.77.0.7")
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("heading", name="Show that 127.77.0.7 is yours")).to_be_visible()
    assert accessibility_faults(page) == []
    greeting = page.get_by_role("region", name="By the greeting")
    token = greeting.locator("dd").nth(1).inner_text()
    with host(refusing("220 stub.test ESMTP"), web.mail_port, "127.77.0.7"):
        greeting.get_by_role("button").click()
        expect(page.get_by_role("alert")).to_contain_text("does not hold the token")
    with host(refusing(f"220 stub.test ESMTP {token}"), web.mail_port, "127.77.0.7"):
        page.get_by_role("region", name="By the greeting").get_by_role("button").click()
        expect(page.get_by_role("heading", name="Closed to strangers")).to_be_visible(timeout=SECONDS * 1000)


@pytest.mark.parametrize("context", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_pages_can_be_used_by_everybody(context: BrowserContext, web: Site) -> None:
    page = context.new_page()
    faults = faults_of(page)
    for path in ("/", "/about", "/problems"):
        page.goto(web.url + path)
        assert accessibility_faults(page) == [], path
    over = threading.Event()
    with host(silent(over), web.mail_port, ADDRESS):
        page.goto(web.url)
        page.get_by_role("button", name=f"Test {ADDRESS}").click()
        expect(page.get_by_role("status")).to_contain_text("Under way")
        assert accessibility_faults(page) == [], "a test under way"
        over.set()
        expect(page.get_by_role("heading", name="No verdict", exact=True)).to_be_visible()
    with host(refusing(), web.mail_port, ADDRESS):
        page.goto(web.url)
        page.get_by_role("button", name=f"Test {ADDRESS}").click()
        expect(page.get_by_role("heading", name="Closed to strangers")).to_be_visible()
        assert accessibility_faults(page) == [], "a result"
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320, (
        "nothing is cut on a small screen (WCAG 1.4.10)"
    )
    assert faults == []


def test_host_cannot_bring_script_into_the_page(context: BrowserContext, web: Site) -> None:
    banner = "220 x <img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    with host(refusing(banner), web.mail_port, ADDRESS):
        page = context.new_page()
        faults = faults_of(page)
        page.goto(web.url)
        page.get_by_role("button", name=f"Test {ADDRESS}").click()
        expect(page.get_by_role("heading", name="Closed to strangers")).to_be_visible()
        assert page.locator("img").count() == 0
        assert re.match(r"127\.0\.0\.1: ", page.title())
        assert faults == []
