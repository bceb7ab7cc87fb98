import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment

from pdctl.dashboard.layout import render
from pdctl.dashboard.view_state import ViewState
from pdctl.deployment.models import Load
from tests.dashboard.deployment_samples import a_plan, deployment, line, process, starting


def view(status=None, *, lines=40):
    state = ViewState()
    state.set_status(status or deployment(), 0.0)
    for number in range(lines):
        name = ["router", "prefill-0", "decode-0"][number % 3]
        state.add_log(line(f"line {number} 日本語 " + "x" * number * 3, name))
    return state


def shown(state, width=80, height=24):
    console = Console(file=io.StringIO(), width=width, height=height)
    state.size = (width, height)
    screen = render(state)
    state.log_rows = screen.log_rows
    return ["".join(part.text for part in row) for row in console.render_lines(screen.content, pad=False)]


def styles(state, text, width=100, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, color_system="256", force_terminal=True)
    state.size = (width, height)
    rendered = console.render(render(state).content, console.options)
    return {str(part.style) for part in Segment.simplify(rendered) if text in part.text}


def test_screen_has_headline_processes_figures_logs_and_keys():
    rows = shown(view())
    assert rows[0].split() == ["chat", "ready", "http://127.0.0.1:8000", "tiny-llama"]
    assert [row.split()[:2] for row in rows[2:5]] == [["1", "router"], ["2", "prefill-0"], ["3", "decode-0"]]
    assert [row.split()[0] for row in rows[5:8]] == ["tok/s", "TPOT", "waiting"]
    assert rows[8].startswith("0.0 req/s  0.0 tok/s  KV 0 B, 0 B/s  prompt: 0 transferred, 0 local")
    assert rows[9].startswith("── logs ─")
    assert rows[-2].startswith("router    │ line 39 日本語 xxx")
    assert rows[-1].split()[:2] == ["/", "search"]
    assert len(rows) == 24


STATES = st.sampled_from(["plain", "typing", "asked", "hinted", "searched", "scrolled", "plan", "help", "selected"])


def put_into(state, what):
    keys = {"typing": "f", "asked": "1r", "hinted": "r", "searched": "/line", "plan": "o", "help": "?", "selected": "3"}
    for key in keys.get(what, ""):
        state.press(key)
    if what == "scrolled":
        state.press("page up")


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 130), st.integers(1, 50), st.integers(0, 40), st.integers(0, 6), st.integers(1, 3), STATES)
def test_every_size_is_filled_exactly_and_never_exceeded(width, height, count, notes, hosts, what):
    processes = [
        process(f"decode-{number}", host=f"host-{number % hosts}", warning="w" * 200 if number < notes else None)
        for number in range(count)
    ]
    state = view(deployment(*processes, reason="r" * 300 if notes else None))
    state.plan = a_plan()
    put_into(state, what)
    rows = shown(state, width, height)
    assert len(rows) == height
    assert max(cell_len(row) for row in rows) <= width
    if state.page is None:
        assert rows[0].startswith("chat") or width < 5 or height < 3


@pytest.mark.parametrize(("width", "graph_rows"), [(80, 3), (120, 2), (200, 1), (40, 5)])
def test_graphs_stand_side_by_side_as_far_as_there_is_room(width, graph_rows):
    rows = shown(view(), width)
    table_end = next(number for number, row in enumerate(rows) if "decode-0" in row)
    totals = next(number for number, row in enumerate(rows) if "req/s" in row)
    assert totals - table_end - 1 == graph_rows


def test_low_terminals_do_without_graphs():
    assert not any(row.startswith("tok/s") for row in shown(view(), 80, 19))


def test_several_hosts_are_groups():
    state = view(deployment(process("router"), process("decode-0", host="gpu-b", state="unreachable")))
    rows = shown(state, 120)
    assert rows[2].startswith("here  reached  1 process")
    assert rows[3].startswith("1 router")
    assert rows[4].startswith("gpu-b  unreachable  1 process")
    assert rows[5].startswith("2 decode-0")
    assert "unreachable" in rows[5]


def test_the_selected_process_is_marked_without_colour_too_and_always_in_view():
    state = view(deployment(*[process(f"decode-{number}") for number in range(30)]))
    for _ in range(29):
        state.press("right")
    rows = shown(state)
    assert any(row.startswith(" >decode-28") for row in rows)
    assert not any("decode-0 " in row for row in rows[:10])
    state.press("9")
    assert any(row.startswith("9>decode-8") for row in shown(state))


def test_questions_are_asked_in_the_last_line_on_the_lowest_terminal_too():
    state = view()
    for key in "3d":
        state.press(key)
    for height in (24, 9, 4):
        assert shown(state, 80, height)[-1].startswith("drain decode-0? it gets no new requests   y: yes")


def test_narrow_terminals_keep_the_most_needed_keys():
    state = view()
    assert shown(state, 200)[-1].split()[:3] == ["↑", "↓", "scroll"]
    assert shown(state, 44)[-1].rstrip() == "/ search  r restart  ? help  q quit view"
    state.notes.say("x", "error", "no")
    assert "x dismiss" in shown(state, 80)[-1]


def test_notes_are_few_lines_and_all_are_to_be_read():
    state = view(deployment(*[process(f"decode-{number}", warning=f"w{number}") for number in range(9)]))
    rows = shown(state)
    assert [row.rstrip() for row in rows[1:5]] == [
        *(f"decode-{number}: w{number}" for number in range(3)),
        "... and 6 more: e reads them",
    ]
    state.press("e")
    assert sum("decode-" in row for row in shown(state)) == 9


def test_matches_are_marked_and_the_found_one_differs():
    state = view(lines=0)
    for text in ("an error here", "nothing", "Error: again error"):
        state.add_log(line(text))
    for key in ["/", *"error", "enter"]:
        state.press(key)
    rows = shown(state)
    assert any(row.startswith("── logs search “error” match 2 of 2 ") for row in rows)
    assert any(row.startswith("router    > Error: again error") for row in rows)
    assert any("reverse" in style and "bold" not in style for style in styles(state, "error"))
    assert any("reverse" in style and "bold" in style for style in styles(state, "Error"))


def test_the_found_line_is_shown_from_where_the_match_is():
    state = view(lines=0)
    state.add_log(line("x" * 300 + " needle " + "y" * 300))
    assert "needle" not in "".join(shown(state))
    for key in ["/", *"needle", "enter"]:
        state.press(key)
    assert any(
        row.startswith("router    > …xx") and " needle yyy" in row and row.rstrip().endswith("…")
        for row in shown(state)
    )


def test_without_colour_nothing_is_coloured():
    state = view(deployment(process("decode-0", state="failed", exit_code=1)))
    state.press("1")
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system="256", no_color=True)
    console.print(render(state).content)
    codes = {code for sequence in re.findall(r"\x1b\[([\d;]*)m", file.getvalue()) for code in sequence.split(";")}
    assert codes <= {"0", "1", "2", "3", "4", "7", "9", ""}


@pytest.mark.parametrize("label", ["quit view", "stop and quit"])
def test_what_q_does_is_the_callers_to_say(label):
    state = ViewState(quit_label=label)
    state.set_status(deployment(), 0.0)
    assert shown(state)[-1].rstrip().endswith(f"q {label}")


def test_before_the_first_status_there_is_a_word():
    state = ViewState()
    state.add_log(line("early"))
    rows = shown(state, height=5)
    assert rows[0] == "waiting for the first status"
    assert any("early" in row for row in rows)


def test_loading_shows_a_bar():
    row = next(row for row in shown(view(deployment(starting(100)))) if "prefill-0" in row)
    assert "━━━━━━━━━━ loading weights 50%" in row


def test_prompts_that_decode_engines_compute_are_counted():
    load = Load(locally_computed_tokens=120, transferred_tokens=500, transferred_bytes=2.5e9)
    rows = shown(view(deployment(process("decode-0", load=load))), width=120)
    assert "KV 2.5 GB, 0 B/s  prompt: 500 transferred, 120 local" in "\n".join(rows)


def test_reason_and_warnings_are_shown_as_they_are():
    rows = shown(view(deployment(process("router", warning="disk [full]"), state="degraded", reason="[x] died")))
    assert [row.strip() for row in rows[1:3]] == ["[x] died", "router: disk [full]"]


def test_many_processes_leave_room_for_logs():
    rows = shown(view(deployment(*[process(f"decode-{number}") for number in range(30)])))
    more = next(index for index, row in enumerate(rows) if row.startswith("... and "))
    visible = sum(" decode-" in row for row in rows[:more])
    assert rows[more].rstrip() == f"... and {30 - visible} more"
    assert sum("│ line" in row for row in rows) >= 8


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        (["2", "h"], "── logs without prefill-0 ─"),
        (["2", "l"], "── logs of prefill-0 ─"),
        (["f", "a", "enter"], "── logs with “a” ─"),
        (["p"], "── logs paused, 0 below, 0 new ─"),
        (["up", "up"], "── logs scrolled, 2 below, 0 new ─"),
        (["/", "z"], "── logs search “z” no match "),
    ],
)
def test_what_is_shown_of_the_logs_is_named_above_them(keys, rule):
    state = view()
    shown(state)  # which tells how many rows there are
    for key in keys:
        state.press(key)
    assert any(row.startswith(rule) for row in shown(state))


@pytest.mark.parametrize(("key", "purpose"), [("f", "filter"), ("/", "search")])
def test_what_is_typed_is_in_the_last_line(key, purpose):
    state = view()
    for pressed in (key, "a", "b"):
        state.press(pressed)
    assert shown(state)[-1].startswith(f"{purpose}: ab█")


def test_hidden_processes_lines_are_not_shown():
    state = view()
    state.press("2")
    state.press("h")
    rows = shown(state)
    assert not any(row.startswith("prefill-0 │") for row in rows)
    assert any(row.startswith("decode-0  │") for row in rows)


def test_each_process_has_its_colour():
    state = view()
    colours = [styles(state, f"{name:<9} │") for name in ("router", "prefill-0", "decode-0")]
    assert all(len(colour) == 1 for colour in colours)
    assert len(set.union(*colours)) == 3


def test_long_lines_are_cut_with_a_mark():
    state = view(lines=0)
    state.add_log(line("日" * 200))
    row = next(row for row in shown(state, width=41) if "日" in row)
    assert row.rstrip().endswith("…")
    assert cell_len(row) <= 41


def test_markup_in_log_lines_is_text():
    state = view(lines=0)
    state.add_log(line("[bold]x[/bold] {y}"))
    assert any("[bold]x[/bold] {y}" in row for row in shown(state))
