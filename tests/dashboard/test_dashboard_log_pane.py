import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.log_pane import MAX_LINE_LENGTH, MAX_LOG_LINES, LogPane
from tests.dashboard.deployment_samples import line

NAMES = ["router", "prefill-0", "decode-0"]


@pytest.fixture
def pane():
    """Line 0 to Line 19, of each process in turn."""
    pane = LogPane()
    for number in range(20):
        pane.add(line(f"Line {number}", NAMES[number % 3]))
    return pane


def shown(pane, rows=5):
    return [int(entry.text.split()[1]) for entry in pane.window(rows)]


def test_the_latest_lines_are_followed_oldest_first(pane):
    assert shown(pane, 3) == [17, 18, 19]
    assert shown(pane, 0) == []
    pane.add(line("Line 20"))
    assert shown(pane, 3) == [18, 19, 20]
    assert (pane.follows, pane.below, pane.unseen) == (True, 0, 0)


def test_scrolled_back_it_stays_where_it_is_while_lines_come(pane):
    pane.scroll(4, 5)
    assert shown(pane) == [11, 12, 13, 14, 15]
    for number in range(20, MAX_LOG_LINES + 50):
        pane.add(line(f"Line {number}"))
    assert shown(pane) == [11, 12, 13, 14, 15]
    assert (pane.follows, pane.below, pane.unseen) == (False, 4, MAX_LOG_LINES + 30)


def test_it_follows_again_once_the_end_is_reached(pane):
    pane.scroll(4, 5)
    pane.scroll(-3, 5)
    assert not pane.follows
    pane.add(line("Line 20"))
    pane.scroll(-1, 5)
    assert pane.follows
    assert shown(pane) == [16, 17, 18, 19, 20]


def test_it_does_not_scroll_beyond_the_oldest_line(pane):
    pane.scroll(1000, 5)
    assert shown(pane) == [0, 1, 2, 3, 4]
    pane.scroll(-1, 5)
    assert shown(pane) == [1, 2, 3, 4, 5]
    pane.to_start(5)
    assert shown(pane) == [0, 1, 2, 3, 4]
    pane.follow()
    assert shown(pane) == [15, 16, 17, 18, 19]


def test_paused_it_can_be_scrolled_and_follows_only_when_it_goes_on(pane):
    pane.pause()
    pane.add(line("Line 20"))
    assert shown(pane) == [15, 16, 17, 18, 19]
    pane.scroll(2, 5)
    pane.scroll(-2, 5)
    pane.follow()  # End
    assert shown(pane) == [15, 16, 17, 18, 19]
    assert (pane.is_paused, pane.follows, pane.unseen) == (True, False, 1)
    pane.pause()
    assert shown(pane) == [16, 17, 18, 19, 20]
    assert (pane.is_paused, pane.unseen) == (False, 0)


def test_pausing_where_it_was_scrolled_to_stays_there(pane):
    pane.scroll(4, 5)
    pane.pause()
    assert shown(pane) == [11, 12, 13, 14, 15]


def test_filters_apply_to_what_is_scrolled_through(pane):
    pane.hidden = {"router"}
    pane.scroll(2, 4)
    assert shown(pane, 4) == [11, 13, 14, 16]
    pane.text_filter = "LINE 1"
    assert shown(pane, 4) == [11, 13, 14, 16]
    pane.hidden.clear()
    assert shown(pane, 4) == [13, 14, 15, 16]
    pane.show_all()
    assert shown(pane, 4) == [13, 14, 15, 16]


def test_a_search_shows_the_latest_match_and_goes_on_from_there(pane):
    pane.search("LINE 1", 5)
    assert (pane.current.text, pane.found) == ("Line 19", "match 11 of 11")
    assert shown(pane) == [15, 16, 17, 18, 19]
    for _ in range(9):
        pane.find(older=True, rows=5)
    assert pane.current.text == "Line 10"
    assert 10 in shown(pane)
    pane.find(older=True, rows=5)
    assert (pane.current.text, pane.found) == ("Line 1", "match 1 of 11")
    assert 1 in shown(pane)
    pane.find(older=True, rows=5)
    assert (pane.current.text, pane.found) == ("Line 1", "no match above")
    pane.find(older=False, rows=5)
    assert pane.current.text == "Line 10"


def test_a_search_respects_the_filters_and_says_when_there_is_nothing(pane):
    pane.hidden = {"router"}
    pane.search("line 9", 5)
    assert (pane.current, pane.found) == (None, "no match")
    pane.search("line 8", 5)
    assert pane.current.text == "Line 8"
    pane.search("", 5)
    assert (pane.current, pane.found) == (None, "")


def test_a_search_begins_where_it_was_scrolled_to(pane):
    pane.scroll(10, 5)
    pane.search("line", 5)
    assert pane.current.text == "Line 9"
    pane.follow()
    pane.find(older=True, rows=5)
    assert pane.current.text == "Line 19"


@given(st.integers(0, 8), st.integers(1, 7), st.data())
def test_whatever_is_done_the_window_is_full_where_it_can_be_and_in_order(count, rows, data):
    pane = LogPane()
    for number in range(count):
        pane.add(line(f"Line {number}", NAMES[number % 3]))
    steps = {
        "scroll": lambda: pane.scroll(data.draw(st.integers(-9, 9)), rows),
        "start": lambda: pane.to_start(rows),
        "end": pane.follow,
        "pause": pane.pause,
        "search": lambda: pane.search(data.draw(st.sampled_from(["", "3", "line", "x"])), rows),
        "older": lambda: pane.find(older=True, rows=rows),
        "newer": lambda: pane.find(older=False, rows=rows),
        "add": lambda: pane.add(line("Line 99")),
    }
    for step in data.draw(st.lists(st.sampled_from(list(steps)), max_size=12)):
        steps[step]()
        window = shown(pane, rows)
        assert window == sorted(window)
        assert len(window) == min(rows, len(pane._frozen if pane._frozen is not None else pane._lines))


def test_memory_is_bounded(pane):
    for _ in range(MAX_LOG_LINES + 50):
        pane.add(line("x" * 50_000))
    kept = pane.window(MAX_LOG_LINES * 2)
    assert len(kept) == MAX_LOG_LINES
    assert max(len(entry.text) for entry in kept) == MAX_LINE_LENGTH
