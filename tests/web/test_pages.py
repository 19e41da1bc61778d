"""What every answer owes its reader: careful headers, whole pages without script, problems that say what to do."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from peer_programs import wait_until
from posthouse.web.document import State
from posthouse.web.problem import PROBLEMS
from posthouse_server import ADDRESS, posthouse
from visiting import Site, host, refusing, silent, site


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site(web="tests_per_address = 1000") as found:
        yield found


class Links(HTMLParser):
    """All that a page has fetched or goes to, and what a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.found.append(value or "")
            if name == "style" or name.startswith("on"):
                self.forbidden.append(f"{tag} {name}")
        if tag == "style" or (tag == "script" and not dict(attrs).get("src")):
            self.forbidden.append(tag)


def test_every_page_keeps_to_itself(web: Site) -> None:
    with host(refusing(), web.mail_port) as caller:
        created = web.post("/api/tests", {}, caller).test
        wait_until(lambda: web.visit(created.links.document).test.state is State.DONE, "the test to end")
        pages = ["/", "/about", "/problems", "/nothing", created.links.page, "/openapi.json", "/health"]
        for path in pages:
            answer = web.visit(path, accept="text/html")
            policy = answer.fields["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy, path
            assert answer.fields["x-content-type-options"] == "nosniff"
            assert answer.fields["referrer-policy"] == "no-referrer"
            assert answer.fields["cache-control"] == "no-store"
            assert "server" not in answer.fields
            if answer.fields["content-type"].startswith("text/html"):
                links = Links()
                links.feed(answer.text)
                assert links.forbidden == []
                assert all(re.match(r"/|#|mailto:", link) for link in links.found), links.found


def test_static_files_may_be_kept_for_good_under_the_address_that_pages_use(web: Site) -> None:
    links = Links()
    links.feed(web.visit("/").text)
    files = [link for link in links.found if link.startswith("/static/")]
    assert files
    for path in files:
        answer = web.visit(path)
        assert answer.status == 200
        assert "immutable" in answer.fields["cache-control"]
    old = re.sub(r"/static/\w+/", "/static/0123456789ab/", files[0])
    assert web.visit(old).fields["cache-control"] == "no-store"
    assert web.visit("/static/x/..%2f..%2fapp.py").status == 404


def test_problem_is_json_for_programs_and_a_page_for_people(web: Site) -> None:
    for path, method, status in (("/api/tests/none", "GET", 404), ("/api/tests", "DELETE", 405), ("/x", "GET", 404)):
        answer = web.visit(path, method)
        assert answer.status == status
        assert answer.fields["content-type"] == "application/problem+json"
        assert answer.json["status"] == status
        assert answer.json["type"].removeprefix("/problems#") in PROBLEMS
    assert web.visit("/api/tests", "DELETE").fields["allow"] == "POST"
    assert web.visit("/about", "HEAD").status == 200
    assert web.visit("/test-me", "HEAD").status == 405, "to ask about a test must not begin one"
    page = web.visit("/tests/none", accept="text/html")
    assert page.status == 404
    assert "<h1>Not found</h1>" in page.text
    listed = web.visit("/problems").text
    assert all(f'id="{slug}"' in listed for slug in PROBLEMS)


def test_odd_requests_are_refused_in_words_and_the_service_goes_on(web: Site) -> None:
    assert web.visit("/api/tests", "POST", b"{").status == 400
    assert web.visit("/api/tests", "POST", b'{"address": "192.0.2.1"}').status == 400
    assert web.visit("/api/tests", "POST", b"\xff\xfe").status == 400
    assert web.visit("/api/tests", "POST", b" " * 100_000).status == 413
    assert web.visit("/tests", "POST", b"%ff" * 2000).status == 413
    assert web.visit("/tests/%00%0a%3Cscript%3E", accept="text/html").status == 404
    for octets in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"A" * 100_000,
        b"\r\n" * 5000,
    ):
        with socket.create_connection((ADDRESS, web.port), 10) as connection:
            try:
                connection.sendall(octets)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                continue
    assert web.visit("/health").status == 200


def test_other_sites_cannot_have_a_visitors_browser_start_a_test(web: Site) -> None:
    foreign: list[dict[str, str]] = [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ]
    for fields in foreign:
        assert web.visit("/test-me", "POST", b"", **fields).status == 403
        assert web.visit("/test-me", **fields).status == 403
        assert web.post("/api/tests", {}, **fields).status == 403
        assert web.visit("/tests", "POST", b"host=mx.example.org", **fields).status == 403
    own = web.visit("/test-me", "POST", b"", origin=web.url, sec_fetch_site="same-origin")
    assert own.status == 303


def test_following_a_link_in_a_browser_starts_nothing(web: Site) -> None:
    answer = web.visit("/test-me", accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert answer.status == 303
    assert answer.fields["location"] == "/#calling"


def test_without_script_the_page_grows_until_the_verdict_stands(web: Site) -> None:
    over = threading.Event()
    with host(silent(over), web.mail_port) as caller:
        location = web.visit("/test-me", "POST", b"", caller).fields["location"]
        shown = web.visit(location).text
        assert f'<noscript><meta http-equiv="refresh" content="0; url={location}/live"></noscript>' in shown
        over.set()
    with host(refusing(), web.mail_port) as caller:
        location = web.visit("/test-me", "POST", b"", caller).fields["location"]
        grown = web.visit(f"{location}/live", caller=caller)
        whole = grown.text if grown.status == 200 else web.visit(location).text
        assert "Closed to strangers" in whole
        assert whole.count("<tr") > 40
        assert whole.rstrip().endswith("</html>")


def test_events_go_on_where_a_client_left_off(web: Site) -> None:
    with host(refusing(), web.mail_port) as caller:
        test = web.visit("/test-me", caller=caller, accept="application/json").test
        everything = web.visit(test.links.events).text
        last = int(re.findall(r"^id: (\d+)$", everything, re.MULTILINE)[-1])
        rest = web.visit(test.links.events, last_event_id=str(last - 1)).text
        assert re.findall(r"^id: (\d+)$", rest, re.MULTILINE) == [str(last)]
        assert "event: done" in rest


def test_nothing_of_the_web_is_loaded_where_it_is_not_configured() -> None:
    program = (
        "import sys, posthouse.serve.supervisor, posthouse.serve.worker, posthouse.cli.program\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('starlette', 'uvicorn', 'jinja2', 'h11', 'anyio')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with posthouse() as server:
        assert "pages on" not in server.output()
