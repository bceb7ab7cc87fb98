import pytest

from pdctl.dashboard.notes import MAX_NOTES, Notes
from tests.dashboard.deployment_samples import deployment, process

DIED = "decode-0 was killed by SIGKILL"


@pytest.fixture
def notes():
    return Notes()


def lines(notes):
    return [note.line(notes.now) for note in notes.shown]


def decode(**fields):
    return process("decode-0", **fields)


def test_nothing_is_noted_of_what_is_well(notes):
    notes.look(deployment(), 0.0)
    assert lines(notes) == []


def test_the_end_of_a_process_is_told_with_its_last_line_instead_of_the_reason(notes):
    dead = decode(state="exited", exit_code=-9, last_line="\x1b[31mCUDA error\x1b[0m")
    notes.look(deployment(dead, state="degraded", reason=f"{DIED}: see `pdctl logs decode-0`"), 0.0)
    assert lines(notes) == [f"{DIED}: CUDA error"]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("restarting", ", and is started again (restart 3)"),
        ("starting", ", and is started again (restart 2)"),
        ("failed", ", and keeps failing (restarts: 2)"),
    ],
)
def test_what_becomes_of_it_is_told(notes, state, text):
    code = None if state == "starting" else -9
    dead = decode(state=state, exit_code=code, restarts=2, last_end="was killed by SIGKILL")
    reason = f"{DIED}: it is being restarted (restart 3)"
    notes.look(deployment(dead, state="degraded", reason=reason), 0.0)
    assert lines(notes) == [DIED + text]


def test_an_end_stays_when_the_process_runs_again(notes):
    notes.look(deployment(decode(state="restarting", exit_code=-9, restart_in_s=1.0)), 10.0)
    notes.look(deployment(decode(restarts=1)), 12.0)
    notes.look(deployment(decode(restarts=1)), 100.0)
    assert lines(notes) == [f"1m30s ago: {DIED}, and is started again (restart 1)"]
    notes.dismiss()
    notes.look(deployment(decode(restarts=1)), 101.0)
    assert lines(notes) == []


def test_an_end_between_two_looks_is_noticed_by_the_count_of_restarts(notes):
    notes.look(deployment(decode(restarts=3)), 0.0)
    assert lines(notes) == []
    notes.look(deployment(decode(restarts=4, last_end="was killed by SIGKILL")), 5.0)
    assert lines(notes) == [f"0s ago: {DIED}, and was started again"]


def test_a_process_that_was_told_to_stop_is_no_error(notes):
    notes.look(deployment(decode(state="exited", exit_code=-9, stopped=True)), 0.0)
    assert lines(notes) == []


def test_a_first_start_is_no_error(notes):
    notes.look(deployment(decode(state="starting"), state="starting"), 0.0)
    assert lines(notes) == []


def test_that_another_changes_it_is_told_as_long_as_it_does(notes):
    notes.look(deployment(reason="pid 7 is changing it"), 0.0)
    notes.look(deployment(reason="pid 7 is changing it"), 9.0)
    assert lines(notes) == ["pid 7 is changing it, for 9s"]
    assert notes.shown[0].kind == "work"
    notes.look(deployment(), 10.0)
    assert lines(notes) == []


def test_a_dismissed_condition_comes_back_only_when_it_is_new(notes):
    for second, count in enumerate((12, 13, 900)):
        notes.look(deployment(decode(warning=f"computed {count} tokens itself")), float(second))
        assert lines(notes) == ([f"decode-0: computed {count} tokens itself"] if second == 0 else [])
        notes.dismiss()
    notes.look(deployment(decode()), 5.0)
    assert lines(notes) == []
    notes.look(deployment(decode(warning="computed 1 tokens itself")), 6.0)
    assert lines(notes) == ["decode-0: computed 1 tokens itself"]


def test_what_is_so_now_comes_before_what_was_and_the_latest_first(notes):
    notes.look(deployment(reason="first", state="degraded"), 0.0)
    notes.look(deployment(reason="second", state="degraded"), 1.0)
    notes.look(deployment(decode(warning="w"), reason="third", state="degraded"), 2.0)
    assert lines(notes) == ["third", "decode-0: w", "1s ago: second", "2s ago: first"]
    notes.dismiss()
    assert lines(notes) == ["decode-0: w", "1s ago: second", "2s ago: first"]
    notes.dismiss_all()
    assert lines(notes) == []


def test_work_cannot_be_dismissed_and_its_outcome_takes_its_place(notes):
    notes.look(deployment(), 10.0)
    notes.say("operation on decode-0", "work", "restarting decode-0")
    notes.look(deployment(), 75.0)
    notes.dismiss_all()
    assert lines(notes) == ["restarting decode-0, for 1m05s"]
    notes.say("operation on decode-0", "error", "restart decode-0: no")
    notes.look(deployment(), 80.0)
    assert lines(notes) == ["5s ago: restart decode-0: no"]
    notes.dismiss()
    assert lines(notes) == []


def test_memory_is_bounded(notes):
    for number in range(MAX_NOTES * 3):
        reason = "x" * number
        notes.look(deployment(reason=f"reason {reason}", state="degraded"), float(number))
    assert len(notes.shown) == MAX_NOTES + 1
