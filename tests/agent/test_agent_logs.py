"""Cutting output in lines, writing them to files of limited size, reading the last ones back."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.agent.logs import FILES, MAX_LINE_BYTES, Line, LineSplitter, RotatingLog, numbered, read_tail
from tests.agent.agent_harness import eventually

LINES = [Line(1000.5 + i, f"line {i}") for i in range(500)]


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line.text for chunk in chunks for line in splitter.feed(chunk)] + [line.text for line in splitter.end()]


def test_lines_and_what_is_left_at_the_end() -> None:
    assert split(b"one\ntwo\n\nfo", b"ur") == ["one", "two", "", "four"]


def test_a_carriage_return_ends_a_line_as_progress_bars_use_it() -> None:
    assert split(b"\r10%\r20%", b"\r30%\n", b"done\r\n") == ["10%", "20%", "30%", "done"]


def test_a_redrawn_line_is_given_out_before_it_ends() -> None:
    assert [line.text for line in LineSplitter().feed(b"10%\r20%\r30%")] == ["10%", "20%"]


def test_a_line_without_end_is_cut() -> None:
    assert split(b"x" * (2 * MAX_LINE_BYTES + 1)) == ["x" * MAX_LINE_BYTES, "x" * MAX_LINE_BYTES, "x"]


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", "é".encode()]), max_size=40), st.data())
def test_lines_do_not_depend_on_how_the_output_arrives(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    bounds = [0, *cuts, len(whole)]
    assert split(*(whole[a:b] for a, b in pairwise(bounds))) == split(whole)


def test_times_of_lines_strictly_increase() -> None:
    times = [line.time for line in LineSplitter().feed(b"x\n" * 1000)]
    assert all(a < b for a, b in pairwise(times))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "p.log")
    log.write(LINES)
    assert read_tail(tmp_path / "p.log", 10_000) == LINES
    assert read_tail(tmp_path / "p.log", 7) == LINES[-7:]
    assert read_tail(tmp_path / "p.log", 0) == []
    assert read_tail(tmp_path / "none.log", 7) == []


@pytest.mark.parametrize("count", [1, 60, 130])
def test_reading_goes_back_over_rotated_files(tmp_path: Path, count: int) -> None:
    log = RotatingLog(tmp_path / "p.log", file_bytes=1500)
    for line in LINES:
        log.write([line])
    assert numbered(tmp_path / "p.log", 1).stat().st_size <= 1500
    assert read_tail(tmp_path / "p.log", count) == LINES[-count:]


def test_the_size_on_disk_is_limited(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "p.log", file_bytes=1000)
    for line in LINES:
        log.write([line])
    assert len(list(tmp_path.iterdir())) == FILES
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= FILES * 1000


def test_a_log_goes_on_after_that_of_an_earlier_process(tmp_path: Path) -> None:
    for line in LINES[:2]:
        log = RotatingLog(tmp_path / "p.log")
        log.write([line])
        log.close()
    assert read_tail(tmp_path / "p.log", 10) == LINES[:2]


def test_a_full_disk_is_a_warning_and_writing_resumes(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    path.symlink_to("/dev/full")
    log = RotatingLog(path)
    log.write(LINES[:3])
    assert log.warning is not None
    assert "No space left on device" in log.warning
    path.unlink()

    def resumed() -> bool:
        log.write(LINES[3:4])
        return log.warning is None

    eventually(resumed, "writing again")
    texts = [line.text for line in read_tail(path, 10)]
    assert "lines lost" in texts[0]
    assert texts[-1] == "line 3"


def test_a_file_cut_in_the_middle_of_a_line_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    path.write_bytes(b"garbage\n1000.5 good\n\xff\xfe\n1001.5 half")
    assert read_tail(path, 10) == [Line(1000.5, "good"), Line(1001.5, "half")]
