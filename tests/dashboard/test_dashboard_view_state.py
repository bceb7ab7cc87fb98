import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.view_state import MAX_LINE_LENGTH, MAX_LOG_LINES, ViewState, clean
from tests.dashboard.deployment_samples import deployment, line, process


@pytest.fixture
def state():
    view = ViewState()
    view.set_status(deployment(), 0.0)
    for number in range(6):
        view.add_log(line(f"Line {number}", ["router", "prefill-0", "decode-0"][number % 3]))
    return view


def texts(view, count=100):
    return [entry.text for entry in view.last_lines(count)]


def press(view, keys):
    for key in keys:
        view.press(key)


def test_latest_lines_oldest_first(state):
    assert texts(state, 2) == ["Line 4", "Line 5"]
    assert texts(state, 0) == []


def test_number_keys_hide_and_show_a_process(state):
    press(state, "2")
    assert texts(state) == ["Line 0", "Line 2", "Line 3", "Line 5"]
    press(state, "12")
    assert texts(state) == ["Line 1", "Line 2", "Line 4", "Line 5"]
    press(state, "049")  # no such process
    assert state.hidden == {"router"}


def test_only_the_first_nine_processes_have_keys():
    view = ViewState()
    view.set_status(deployment(*[process(f"decode-{number}") for number in range(12)]), 0.0)
    press(view, "9")
    assert view.hidden == {"decode-8"}


def test_filter_applies_while_it_is_typed_and_ignores_case(state):
    press(state, ["/", "l", "i", "x", "backspace", "n", "e", " ", "3"])
    assert state.typing
    assert texts(state) == ["Line 3"]
    press(state, ["enter", "q"][:1])
    assert not state.typing
    assert state.text_filter == "line 3"


def test_while_typing_keys_are_text(state):
    press(state, ["/", "q", "p", "1"])
    assert state.text_filter == "qp1"
    assert not state.quit
    assert not state.hidden


def test_escape_drops_the_filter(state):
    press(state, ["/", "x", "escape"])
    assert (state.typing, state.text_filter) == (False, "")
    assert len(texts(state)) == 6


def test_a_shows_everything_again(state):
    press(state, ["1", "/", "x", "enter", "a"])
    assert len(texts(state)) == 6


def test_pause_freezes_the_lines_and_counts_the_new_ones(state):
    press(state, "p")
    for number in range(MAX_LOG_LINES + 5):
        state.add_log(line(f"later {number}"))
    assert texts(state)[-1] == "Line 5"
    assert len(texts(state)) == 6
    assert state.unseen == MAX_LOG_LINES + 5
    press(state, "2")
    assert len(texts(state)) == 4
    press(state, "p")
    assert texts(state)[-1] == f"later {MAX_LOG_LINES + 4}"
    assert state.unseen == 0


def test_q_quits(state):
    press(state, ["x", "enter", "escape", "backspace", "é"])
    assert not state.quit
    press(state, "q")
    assert state.quit


def test_memory_is_bounded(state):
    for _ in range(MAX_LOG_LINES + 50):
        state.add_log(line("x" * 50_000))
    assert len(state.logs) == MAX_LOG_LINES
    assert max(len(entry.text) for entry in state.logs) == MAX_LINE_LENGTH


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
