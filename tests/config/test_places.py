"""The line of each key, in any form that TOML allows."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.config.places import find_places

TEXT = '''# a remark with = and [brackets]
hostname = "mx.example.org"   # line 2

"quoted key" = 'a # b'
dotted.inner = 1

[[listener]]
address = "0.0.0.0:25"

[[listener]]
address = "[::]:25"
tls = { certificate = "a", key = "b }" }
proxies = [
  "10.0.0.1",  # one
  "10.0.0.2",
]

[listener.extra]
deep = true

[relay]
text = """
[not.a.header]
also = "not a key"
"""
raw = \'\'\'
it's''\'\'\'
after = 2026-01-01T00:00:00Z
'''


def test_each_key_is_found_on_its_line():
    assert tomllib.loads(TEXT)["relay"]["after"]
    places = find_places(TEXT)
    assert places["hostname",] == 2
    assert places["quoted key",] == 4
    assert places["dotted", "inner"] == 5
    assert places["listener", 0] == 7
    assert places["listener", 0, "address"] == 8
    assert places["listener", 1, "address"] == 11
    assert places["listener", 1, "tls", "key"] == 12
    assert places["listener", 1, "proxies", 0] == 14
    assert places["listener", 1, "proxies", 1] == 15
    assert places["listener", 1, "extra", "deep"] == 19
    assert places["relay", "text"] == 22
    assert places["relay", "raw"] == 26
    assert places["relay", "after"] == 28
    assert ("relay", "also") not in places


@pytest.mark.parametrize("text", ["", "#", "a=1", 'a="""x"""', "a=[]", "a={}", "[a]", r'"a\"\\b\u0041"=1'])
def test_short_texts_are_read_to_their_end(text):
    places = find_places(text)
    assert len(places) == len(tomllib.loads(text))


@given(st.text(alphabet="ab=[]{}\"'\\#\n., 1", max_size=40))
def test_whatever_tomllib_takes_has_a_line_for_each_key(text):
    try:
        parsed = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError):
        return
    places = find_places(text)

    def keys(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield (*path, key)
                yield from keys(inner, (*path, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield (*path, index)
                yield from keys(inner, (*path, index))

    lines = text.count("\n") + 1
    for path in keys(parsed, ()):
        assert 1 <= places[path] <= lines
