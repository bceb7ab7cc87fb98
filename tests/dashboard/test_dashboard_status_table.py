import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdctl.dashboard.status_table import process_lines, progress_text, render_status
from pdctl.deployment.models import Progress
from tests.dashboard.deployment_samples import deployment, process, starting


def shown(status, width=None):
    console = Console(file=io.StringIO(), width=width or 200)
    console.print(render_status(status, width=width))
    return console.file.getvalue()


def row(text, name):
    return " ".join(next(line for line in text.splitlines() if line.startswith(name)).split())


def test_a_row_a_process_with_its_figures():
    text = shown(deployment())
    assert text.splitlines()[0].split() == ["chat", "ready", "http://127.0.0.1:8000", "tiny-llama"]
    header = "PROCESS ROLE HOST PID PORT STATE CPU MEM RUN WAIT KV KV-IN VIA UP RST"
    assert text.splitlines()[1].split() == header.split()
    assert row(text, "router") == "router router here 101 8000 ready 3% 50 MB - - - - - 1m40s 0"
    assert row(text, "decode-0") == "decode-0 decode here 103 31001 ready 0% 0 B 3 0 83% - ipc,tcp 0s 2"


def test_a_starting_process_shows_how_far_it_is():
    text = shown(deployment(starting(50)))
    assert "loading weights 25%" in text
    assert "starting" not in row(text, "prefill-0")


@pytest.mark.parametrize(("code", "text"), [(-9, "exited (signal 9)"), (1, "exited (code 1)"), (None, "exited")])
def test_an_exited_process_shows_how(code, text):
    assert text in shown(deployment(process("decode-0", state="exited", exit_code=code)))


def test_reason_and_warnings_follow_the_table_as_they_are():
    text = shown(deployment(process("router", warning="log disk [full]"), reason="decode-0 [died]", state="degraded"))
    assert "decode-0 [died]" in text
    assert "router: log disk [full]" in text


def test_narrow_terminals_keep_name_and_state_longest():
    text = shown(deployment(), width=40)
    assert all(len(line.rstrip()) <= 40 for line in text.splitlines())
    assert text.splitlines()[1].split()[:2] == ["PROCESS", "STATE"]
    assert "83%" in text


@given(st.integers(1, 160))
def test_lines_are_as_wide_as_the_table_and_never_wider_than_the_terminal(width):
    processes = [*deployment().processes, starting(3)]
    lines = process_lines(processes, width=width)
    assert len(lines) == 5
    assert len({line.cell_len for line in lines}) == 1
    name_width = max(len(process.name) for process in processes) + 2
    assert lines[0].cell_len <= max(width, name_width)
    assert lines[0].plain.split()[0] == "PROCESS"


def test_progress_without_a_total_is_its_step():
    assert progress_text(Progress(step="warming up", done=0, total=0)) == "warming up"
    assert progress_text(Progress(step="loading", done=9, total=3)) == "loading 100%"
