import pytest

from pdctl.dashboard.view_state import KEYS, Request, ViewState
from tests.dashboard.deployment_samples import a_plan, deployment, line, process


@pytest.fixture
def state():
    view = ViewState(plan=a_plan(), log_rows=10)
    view.set_status(deployment(), 0.0)
    for number in range(6):
        view.add_log(line(f"Line {number}", ["router", "prefill-0", "decode-0"][number % 3]))
    return view


def texts(view, count=100):
    return [entry.text for entry in view.logs.window(count)]


def press(view, *keys):
    for key in keys:
        view.press(key)


def test_numbers_select_a_process_and_once_more_none(state):
    press(state, "2")
    assert state.selected == "prefill-0"
    press(state, "3")
    assert state.selected == "decode-0"
    press(state, "3")
    assert state.selected is None
    press(state, "0", "4", "9")  # no such process
    assert state.selected is None


def test_only_the_first_nine_processes_have_keys_but_arrows_reach_all():
    view = ViewState()
    view.set_status(deployment(*[process(f"decode-{number}") for number in range(12)]), 0.0)
    press(view, "9")
    assert view.selected == "decode-8"
    press(view, "right", "right", "right")
    assert view.selected == "decode-11"
    press(view, "right")
    assert view.selected is None
    press(view, "left")
    assert view.selected == "decode-11"


def test_processes_are_numbered_as_they_are_shown():
    view = ViewState()
    processes = [process("router"), process("prefill-0", host="b"), process("decode-0")]
    view.set_status(deployment(*processes), 0.0)
    press(view, "2")
    assert view.selected == "decode-0"


def test_a_selected_process_that_is_gone_is_selected_no_more(state):
    press(state, "3")
    state.set_status(deployment(process("router")), 1.0)
    assert state.selected is None


def test_the_lines_of_the_selected_process_are_hidden_or_shown_alone(state):
    press(state, "h", "l")  # none is selected
    assert len(texts(state)) == 6
    press(state, "2", "h")
    assert texts(state) == ["Line 0", "Line 2", "Line 3", "Line 5"]
    press(state, "h")
    assert len(texts(state)) == 6
    press(state, "l")
    assert texts(state) == ["Line 1", "Line 4"]
    press(state, "a")
    assert len(texts(state)) == 6


def test_filter_applies_while_it_is_typed_and_ignores_case(state):
    press(state, "f", "l", "i", "x", "backspace", "n", "e", " ", "up", "3")
    assert texts(state) == ["Line 3"]
    press(state, "enter")
    assert state.entry is None
    assert texts(state) == ["Line 3"]
    press(state, "f", "escape")
    assert len(texts(state)) == 6


def test_while_typing_keys_are_text(state):
    press(state, "f", *"qpr1?")
    assert state.entry.text == "qpr1?"
    assert (state.quit, state.selected, state.page, state.question) == (False, None, None, None)


def test_search_goes_from_match_to_match(state):
    press(state, "/", *"line", "enter", "N", "N")
    assert state.logs.current.text == "Line 3"
    press(state, "n")
    assert state.logs.current.text == "Line 4"
    press(state, "/", "escape", "n")
    assert state.logs.current is None


def test_logs_are_scrolled_by_line_and_page(state):
    state.log_rows = 2
    press(state, "up", "page up")
    assert texts(state, 2) == ["Line 2", "Line 3"]
    press(state, "home")
    assert texts(state, 2) == ["Line 0", "Line 1"]
    press(state, "down", "page down")
    assert texts(state, 2) == ["Line 2", "Line 3"]
    press(state, "end")
    assert state.logs.follows


def test_pause(state):
    press(state, "p")
    state.add_log(line("later"))
    assert texts(state)[-1] == "Line 5"
    press(state, "p")
    assert texts(state)[-1] == "later"


@pytest.mark.parametrize(("key", "operation"), [("r", "restart"), ("d", "drain")])
def test_what_changes_something_is_asked_first_and_done_only_on_yes(state, key, operation):
    press(state, "3", key)
    assert state.question.request == Request(operation, "decode-0")
    for answer in ("n", "enter", "q", "escape", key):
        press(state, answer)
        assert (state.question, state.requests, state.quit) == (None, [], False)
        press(state, key)
    press(state, "y")
    assert state.requests == [Request(operation, "decode-0")]


def test_an_engine_that_is_drained_can_be_undrained(state):
    state.set_status(deployment(process("decode-0", draining=True)), 1.0)
    press(state, "1", "d", "y")
    assert state.requests == [Request("undrain", "decode-0")]


def test_before_a_restart_it_is_said_whether_requests_are_cut_off(state):
    press(state, "3", "r")
    assert state.question.text == "it is not drained"
    state.set_status(deployment(process("decode-0", draining=True)), 1.0)
    press(state, "n", "r")
    assert state.question.text == "it is stopped and started again"


def test_what_cannot_be_done_is_said_until_the_next_key(state):
    press(state, "r")
    assert state.hint == "select the process to restart first: ← → or its number"
    press(state, "1", "d")
    assert state.hint == "the router cannot be drained: engines are, by the router"
    assert state.question is None
    press(state, "p")
    assert state.hint == ""


def test_the_plan_is_opened_of_the_selected_process_without_secrets(state):
    press(state, "o")
    assert state.page.title == "plan of chat"
    assert {"router", "prefill-0", "decode-0"} <= set(state.page.lines)
    press(state, "q", "3", "o")
    assert not state.quit
    assert state.page.title == "plan of decode-0"
    text = "\n".join(state.page.lines)
    assert "  gpus   3\n" in text
    assert "argv   /opt/py/bin/python\n           -m engine\n           --model tiny-llama\n" in text
    assert "HF_API_KEY=***" in text
    assert "hf_secret" not in text


def test_a_page_is_scrolled_within_its_bounds(state):
    state.size = (40, 10)
    press(state, "o")
    assert state.page.rows(state.size)[0].startswith("chat: tiny-llama")
    press(state, "up")
    assert state.page.top == 0
    press(state, "down", "page down")
    assert state.page.top == 8
    press(state, "end")
    assert state.page.rows(state.size)[-1].strip() == "--port 0"
    press(state, "down")
    assert state.page.rows(state.size)[-1].strip() == "--port 0"
    state.size = (40, 200)  # resized
    assert state.page.rows(state.size)[0].startswith("chat: tiny-llama")


def test_notes_are_read_in_full_and_dismissed(state):
    reason = "decode-0 cannot be reached " * 20
    state.set_status(deployment(state="degraded", reason=reason), 1.0)
    press(state, "e")
    assert "".join(row.strip() + " " for row in state.page.rows((80, 24))).split() == reason.split()
    press(state, "escape", "x")
    assert state.notes.shown == []


def test_help_has_every_key(state):
    state.quit_label = "stop and quit"
    press(state, "?")
    shown = "\n".join(state.page.lines)
    assert all(key.name in shown for key in KEYS)
    assert "q            stop and quit" in shown
    press(state, "?")
    assert state.page is None


def test_q_quits(state):
    press(state, "z", "enter", "escape", "backspace", "é")
    assert not state.quit
    press(state, "q")
    assert state.quit
