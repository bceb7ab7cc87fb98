import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment

from pdctl.dashboard.layout import render
from pdctl.dashboard.view_state import ViewState
from pdctl.deployment.models import Load
from tests.dashboard.deployment_samples import deployment, line, process, starting


def view(status=None, *, lines=40):
    state = ViewState()
    state.set_status(status or deployment(), 0.0)
    for number in range(lines):
        name = ["router", "prefill-0", "decode-0"][number % 3]
        state.add_log(line(f"line {number} 日本語 " + "x" * number * 3, name))
    return state


def shown(state, width=80, height=24):
    console = Console(file=io.StringIO(), width=width, height=height)
    return [
        "".join(part.text for part in row) for row in console.render_lines(render(state, (width, height)), pad=False)
    ]


def styles(state, text, width=100, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, color_system="256", force_terminal=True)
    rendered = console.render(render(state, (width, height)), console.options)
    return {str(part.style) for part in Segment.simplify(rendered) if text in part.text}


def test_screen_has_headline_processes_totals_logs_and_keys():
    rows = shown(view())
    assert rows[0].split() == ["chat", "ready", "http://127.0.0.1:8000", "tiny-llama"]
    assert [row.split()[:2] for row in rows[2:5]] == [["1", "router"], ["2", "prefill-0"], ["3", "decode-0"]]
    assert rows[5].startswith("0.0 req/s  0.0 tok/s  KV 0 B, 0 B/s  prompt: 0 transferred, 0 local")
    assert rows[6].startswith("── logs ─")
    assert rows[-2].startswith("router    │ line 39 日本語 xxx")
    assert rows[-1].split()[0] == "1-9"
    assert len(rows) == 24


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 130), st.integers(1, 50), st.integers(0, 40), st.integers(0, 5), st.booleans())
def test_every_size_is_filled_exactly_and_never_exceeded(width, height, count, notes, typing):
    processes = [process(f"decode-{number}", warning="w" * 200 if number < notes else None) for number in range(count)]
    state = view(deployment(*processes, reason="r" * 300 if notes else None))
    state.typing = typing
    rows = shown(state, width, height)
    assert len(rows) == height
    assert max(cell_len(row) for row in rows) <= width
    assert rows[0].startswith("chat") or width < 5


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


def test_decode_engines_that_compute_prompts_are_warned_of():
    load = Load(locally_computed_tokens=120, transferred_tokens=500, transferred_bytes=2.5e9)
    rows = shown(view(deployment(process("decode-0", load=load))), width=120)
    assert rows[1].startswith("decode-0 computed 120 prompt tokens itself")
    assert "KV 2.5 GB, 0 B/s  prompt: 500 transferred, 120 local" in "\n".join(rows)
    assert "itself" not in "\n".join(shown(view(deployment(process("mixed-0", load=load)))))


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
        (["2"], "── logs without prefill-0 ─"),
        (["/", "a", "b"], "── logs /ab█ ─"),
        (["/", "a", "enter"], "── logs with “a” ─"),
        (["p"], "── logs paused, 0 new ─"),
    ],
)
def test_filters_are_named_above_the_logs(keys, rule):
    state = view()
    for key in keys:
        state.press(key)
    assert any(row.startswith(rule) for row in shown(state))


def test_hidden_processes_lines_are_not_shown():
    state = view()
    state.press("2")
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
