import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.lines import clean


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x1b[1;31mred\x1b[0m text\r\n", "red text"),
        ("\x1b]0;title\x07seen\x1b]8;;http://x\x1b\\link", "seenlink"),
        ("10%\r50%\r100%", "100%"),
        ("50%\r", "50%"),
        ("a\tb", "a       b"),
        ("bell\x07 back\x08space\x9b", "bell backspace"),
        ("cut \x1b[3", "cut 3"),
        ("日本 café", "日本 café"),
    ],
)
def test_lines_are_cleaned(raw, text):
    assert clean(raw) == text


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]0;m\\\x07\r\t")))
def test_no_control_character_gets_through(raw):
    assert not [char for char in clean(raw) if ord(char) < 32 or 127 <= ord(char) < 160]
