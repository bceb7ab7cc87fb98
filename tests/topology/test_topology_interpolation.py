"""${NAME}, ${NAME:-default} and $$ in scalars."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.topology.interpolation import interpolate

VARIABLES = {"A": "1", "EMPTY": "", "LOOP": "${A}"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "1"),
        ("x${A}y${A}", "x1y1"),
        ("${A:-2}", "1"),
        ("${NONE:-2}", "2"),
        ("${EMPTY:-2}", "2"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b $ c}", "a:-b $ c"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$$", "$$"),
        ("$$${A}", "$1"),
        ("$A cost 5$", "$A cost 5$"),
        ("${LOOP}", "${A}"),  # once, so that a value is never code
    ],
)
def test_forms(text: str, result: str):
    assert interpolate(text, VARIABLES) == result


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A-b}", "${A:?missing}", "${ A }"])
def test_what_is_neither_form(text: str):
    with pytest.raises(ValueError, match=r"is neither \$\{NAME\} nor \$\{NAME:-default\}; a dollar sign is \$\$"):
        interpolate(text, VARIABLES)


def test_undefined():
    with pytest.raises(ValueError, match="variable NONE is not set"):
        interpolate("${NONE}", VARIABLES)


@given(st.text())
def test_escaped_text_comes_back(text: str):
    assert interpolate(text.replace("$", "$$"), {}) == text


@given(st.text(alphabet=st.characters(exclude_characters="$")), st.text(), st.text())
def test_only_the_variable_changes(before: str, value: str, after: str):
    escaped = after.replace("$", "$$")
    assert interpolate(before + "${NAME}" + escaped, {"NAME": value}) == before + value + after
