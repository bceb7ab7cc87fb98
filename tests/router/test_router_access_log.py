"""The access log: what is in it, and that it never holds up or breaks the service."""

import asyncio
import json
import os
import resource
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdctl.errors import PdctlError
from pdctl.router.figures.access_log import AccessLog, AccessRecord
from pdctl.router.requests.report import refusal

TIME = datetime(2026, 11, 25, 12, 0, 0, 250_000, UTC)


def record(**fields: Any) -> AccessRecord:
    given = {"time": TIME, "id": "r-1", "client": "127.0.0.1:5000", "route": "/v1/completions", "model": "m"}
    return AccessRecord(**{**given, "status": 200, "outcome": "ok", "duration_ms": 12.5, **fields})


def opened(path: Path | str) -> closing[AccessLog]:
    return closing(AccessLog(str(path)))


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe, and the end that nobody reads until a test does."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield path, reader
    os.close(reader)


async def test_a_line_has_what_the_request_had(tmp_path: Path):
    with opened(tmp_path / "log") as log:
        log.write(
            [record(prefill="p:1", decode="d:1", stream=True, ttft_ms=1.25, completion_tokens=0, cached_tokens=64)]
        )
    assert lines_of(tmp_path / "log") == [
        {
            "time": "2026-11-25T12:00:00.250000Z",
            "id": "r-1",
            "client": "127.0.0.1:5000",
            "route": "/v1/completions",
            "model": "m",
            "status": 200,
            "outcome": "ok",
            "prefill": "p:1",
            "decode": "d:1",
            "stream": True,
            "completion_tokens": 0,
            "cached_tokens": 64,
            "ttft_ms": 1.25,
            "duration_ms": 12.5,
        }
    ], "defaults are left out"


async def test_a_line_is_written_without_any_further_one(pipe: tuple[Path, int]):
    path, reader = pipe
    with opened(path) as log:
        log.write([record(id="alone")])
        async with asyncio.timeout(10):
            line = await asyncio.to_thread(os.read, reader, 4096)
        assert json.loads(line)["id"] == "alone"


async def test_flush_writes_what_waits(tmp_path: Path):
    with opened(tmp_path / "log") as log:
        for _ in range(3):
            log.write([record()])
        log.flush()
        assert len(lines_of(tmp_path / "log")) == 3


async def test_what_clients_say_stays_within_one_line(tmp_path: Path):
    with opened(tmp_path / "log") as log:
        log.write([record(key='"\n\\', error="é")])
        log.write([record(error="\ud800x")])
        log.write([record(id="next")])
    first, second, third = lines_of(tmp_path / "log")
    assert (first["key"], first["error"]) == ('"\n\\', "é")
    assert second["error"] == "?x", "half a surrogate pair is no text"
    assert third["id"] == "next"


def test_long_errors_are_cut():
    refused: Any = SimpleNamespace(path=b"/v1/completions", address="127.0.0.1:5000")
    assert refusal(refused, refused, "r-1", "m", 400, "é" * 100_000).error == "é" * 512


async def test_several_processes_share_a_file(tmp_path: Path):
    logs = [AccessLog(str(tmp_path / "log")) for _ in range(3)]
    for number in range(2000):
        for name, log in zip("abc", logs, strict=True):
            log.write([record(id=f"{name}{number}")])
    for log in logs:
        log.close()
    ids = [line["id"] for line in lines_of(tmp_path / "log")]
    assert len(ids) == 6000, "an opened file is appended to"
    for name in "abc":
        assert [one for one in ids if one[0] == name] == [f"{name}{number}" for number in range(2000)]


async def test_after_reopen_lines_go_to_a_new_file(tmp_path: Path):
    path = tmp_path / "log"
    with opened(path) as log:
        log.write([record(id="old")])
        log.flush()
        path.rename(tmp_path / "log.1")
        log.write([record(id="old too")])
        log.reopen()
        log.write([record(id="new")])
    assert [line["id"] for line in lines_of(tmp_path / "log.1")] == ["old", "old too"]
    assert [line["id"] for line in lines_of(path)] == ["new"]


async def test_a_file_that_cannot_be_reopened_is_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "logs"
    folder.mkdir()
    with opened(folder / "log") as log:
        folder.rename(tmp_path / "moved")
        log.reopen()
        log.write([record()])
    assert len(lines_of(tmp_path / "moved" / "log")) == 1
    assert "still writing to the old file" in caplog.text


async def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path):
    with pytest.raises(PdctlError, match=r"access log .*/none/log: cannot be opened: No such file or directory"):
        AccessLog(str(tmp_path / "none" / "log"))


async def test_standard_output(capfd: pytest.CaptureFixture[str]):
    for _ in range(2):  # it is not closed
        with opened("-") as log:
            log.write([record(id="seen")])
            log.reopen()
    assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == ["seen", "seen"]


async def test_a_disk_that_is_full_is_said_once_and_counted(caplog: pytest.LogCaptureFixture):
    with opened("/dev/full") as log:
        for _ in range(3):
            log.write([record()])
            log.write([record()])
            log.flush()
        assert log.dropped == 6
    assert [(entry.levelname, entry.getMessage()) for entry in caplog.records] == [
        ("ERROR", "access log /dev/full: No space left on device: its lines are lost")
    ]


async def test_a_torn_line_does_not_spoil_those_after_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, limits = tmp_path / "log", resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as log:
        log.write([record(id="whole")])
        log.flush()
        line = path.stat().st_size
        os.truncate(path, 10_000_000)  # other files that are written here at the same time stay below the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000 + line + 20, limits[1]))
        for name in ("still", "torn_", "lost_"):
            log.write([record(id=name)])
        log.flush()
        log.write([record(id="lost_")])
        log.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert log.dropped == 3
        log.write([record(id="after")])
    *_, still, torn, after = path.read_bytes().lstrip(b"\0").splitlines()
    assert json.loads(still.rpartition(b"\0")[2])["id"] == "still"
    assert len(torn) == 20
    assert json.loads(after)["id"] == "after"
    assert [entry.levelname for entry in caplog.records] == ["ERROR", "WARNING"]
    assert "is written again; 3 lines are missing in all" in caplog.text


async def test_a_reader_that_stalls_costs_lines_and_not_memory_or_time(pipe: tuple[Path, int]):
    path, reader = pipe
    log = AccessLog(str(path))
    written = 60_000  # of about 600 bytes each: far more than may wait
    for number in range(written):
        log.write([record(id=str(number), error="x" * 500)])
    dropped = log.dropped
    assert 0 < dropped < written
    assert (written - dropped) * 500 < 8 * 1024 * 1024

    def read_all() -> bytes:
        with os.fdopen(os.dup(reader), "rb") as file:
            return file.read()

    reading = asyncio.create_task(asyncio.to_thread(read_all))
    await asyncio.to_thread(log.close)
    async with asyncio.timeout(30):
        got = [int(json.loads(line)["id"]) for line in (await reading).splitlines()]
    assert len(got) == written - dropped
    assert got == sorted(got)
    assert got[:10_000] == list(range(10_000)), "those that came first are kept"


async def test_lines_of_several_processes_are_whole_in_a_pipe(pipe: tuple[Path, int], monkeypatch: pytest.MonkeyPatch):
    path, reader = pipe
    sizes: list[int] = []
    real_write = os.write

    def write(file: int, data: Any) -> int:
        sizes.append(len(data))
        return real_write(file, data)

    monkeypatch.setattr(os, "write", write)
    with opened(path) as log:
        for _ in range(100):
            log.write([record(error="x" * 500)])
        reading = asyncio.create_task(asyncio.to_thread(os.read, reader, 1_000_000))
        await reading
        log.flush()
    assert max(sizes) <= 4096, "more is not written in one piece"
    assert min(sizes[:-1]) > 2000, "several lines at once"
