import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdctl.dashboard.status_table import process_table, progress_text, render_status
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
    processes = [*deployment().processes, starting(3).model_copy(update={"name": "prefill-1"})]
    lines = [line.text for line in process_table(processes, width=width)]
    assert len(lines) == 5
    assert len({line.cell_len for line in lines}) == 1
    name_width = max(len(process.name) for process in processes) + 2
    assert lines[0].cell_len <= max(width, name_width)
    assert lines[0].plain.split()[0] == "PROCESS"


def test_several_hosts_are_groups_in_the_order_of_their_first_process():
    there = {"host": "gpu-b"}
    processes = [
        process("router", cpu_percent=2),
        process("prefill-0", **there, cpu_percent=50, memory_bytes=2e9),
        process("prefill-1"),
        process("decode-0", **there, cpu_percent=70, memory_bytes=1e9),
        process("decode-1", host="gpu-c", state="unreachable"),
        process("decode-2", host="gpu-d", state="unknown"),
    ]
    lines = process_table(processes)
    assert [line.process for line in lines] == [
        *(None, None, "router", "prefill-1"),
        *(None, "prefill-0", "decode-0"),
        *(None, "decode-1"),
        *(None, "decode-2"),
    ]
    assert lines[0].text.plain.split()[:3] == ["PROCESS", "ROLE", "PID"]
    assert lines[1].text.plain == "here  reached  2 processes  CPU 2%  MEM 0 B"
    assert lines[4].text.plain == "gpu-b  reached  2 processes  CPU 120%  MEM 3.0 GB"
    assert lines[7].text.plain == "gpu-c  unreachable  1 process"
    assert lines[9].text.plain == "gpu-d  unknown  1 process"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": "restarting", "restart_in_s": 7.6, "exit_code": 1}, "restarting in 8s"),
        ({"state": "failed", "exit_code": 1}, "failed (code 1)"),
        ({"state": "unreachable"}, "unreachable"),
        ({"state": "ready", "draining": True}, "ready, draining"),
    ],
)
def test_states(fields, text):
    assert text in row(shown(deployment(process("decode-0", **fields))), "decode-0")


def test_the_last_line_of_a_process_that_has_ended_is_shown_without_escapes():
    failed = process("decode-0", state="failed", exit_code=1, last_line="\x1b[31mValueError: no [GPU]\x1b[0m")
    assert "decode-0: ValueError: no [GPU]\n" in shown(deployment(failed))


def test_nothing_runs():
    assert shown(deployment(state="down").model_copy(update={"processes": []})).split()[:2] == ["chat", "down"]


def test_progress_without_a_total_is_its_step():
    assert progress_text(Progress(step="warming up", done=0, total=0)) == "warming up"
    assert progress_text(Progress(step="loading", done=9, total=3)) == "loading 100%"
