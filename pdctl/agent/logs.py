"""Logs of processes: lines with the time in front, in files of limited size, that can be read after everything died."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional

FILE_BYTES = 16 * 1024 * 1024
FILES = 4  # the one being written, then .1 (newer) to .3 (older)
MAX_LINE_BYTES = 16 * 1024  # a longer line is cut in several
RETRY_S = 1.0  # after a failed write, until the next attempt
MAX_TAIL = 10_000  # lines of one process read back at once
_MAX_REPLY_BYTES = 8 * 1024 * 1024
_BLOCK_BYTES = 64 * 1024


_EPOCH = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Line(NamedTuple):
    """A line that a process wrote, and when the agent read it: see `now`."""

    time: float
    text: str


def now() -> float:
    """Seconds since the epoch by the wall clock as it was when this program began: setting it changes nothing."""
    return _EPOCH + time.clock_gettime(time.CLOCK_BOOTTIME)


class LineSplitter:
    """Cuts a byte stream in lines; a carriage return ends one too, as progress bars use it."""

    def __init__(self) -> None:
        self._rest = b""
        self._last_time = 0.0

    def feed(self, data: bytes) -> List[Line]:
        """The lines that ``data`` completes; of a line that is being redrawn, the states before the present one."""
        *whole, rest = (self._rest + data).split(b"\n")
        present = rest.rstrip(b"\r")
        redrawn, _, present_state = present.rpartition(b"\r")
        *full, begun = _pieces(present_state) or [b""]
        self._rest = begun + rest[len(present) :][:1]
        texts = [text for line in whole for text in _states(line) or [b""]] + _states(redrawn) + full
        return [self._line(text) for text in texts]

    def end(self) -> List[Line]:
        """What was left without a line end."""
        return self.feed(b"\n") if self._rest else []

    def _line(self, raw: bytes) -> Line:
        """Times strictly increase, so that a reader can tell which lines it has seen."""
        self._last_time = max(round(now(), 6), round(self._last_time + 1e-6, 6))
        return Line(self._last_time, raw.decode(errors="replace"))


class RotatingLog:
    """Writes one process's log. When that is impossible, lines are counted as lost and ``warning`` says why."""

    def __init__(self, path: Path, file_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._fd: Optional[int] = None
        self._size = 0
        self._lost = 0
        self._retry_at = 0.0
        self.warning: Optional[str] = None

    def write(self, lines: List[Line]) -> None:
        """Append the lines, or count them as lost."""
        if time.monotonic() < self._retry_at:
            self._lost += len(lines)
            return
        try:
            self._append(self._missing_note() + "".join(format_line(line) for line in lines))
        except OSError as error:
            self._failed(error, len(lines))
            return
        self._lost, self.warning = 0, None

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, text: str) -> None:
        data = text.encode(errors="replace")
        if self._fd is not None and self._size + len(data) > self._file_bytes:
            self._rotate()
        fd = self._open()
        while data:
            written = os.write(fd, data)
            self._size += written
            data = data[written:]

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _rotate(self) -> None:
        self.close()
        for number in range(FILES - 1, 0, -1):
            older = numbered(self._path, number)
            newer = numbered(self._path, number - 1)
            if newer.exists():
                newer.replace(older)

    def _missing_note(self) -> str:
        """Says in the log itself that lines are missing; the line end closes one that was cut by the failure."""
        if not self._lost:
            return ""
        return "\n" + format_line(Line(round(now(), 6), f"pdctl: {self._lost} lines lost: {self.warning}"))

    def _failed(self, error: OSError, lines: int) -> None:
        self.close()
        self._lost += lines
        self._retry_at = time.monotonic() + RETRY_S
        self.warning = f"its log cannot be written ({error.strerror}): {self._path}"


def format_line(line: Line) -> str:
    """As it stands in the file: the time with microseconds, a space, the text."""
    return f"{line.time:.6f} {line.text}\n"


def parse_line(raw: bytes) -> Optional[Line]:
    """The opposite of ``format_line``; None for a damaged line."""
    stamp, _, text = raw.partition(b" ")
    try:
        return Line(float(stamp), text.decode(errors="replace"))
    except ValueError:
        return None


def numbered(path: Path, number: int) -> Path:
    """The log's file, number 0 being the one that is written."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def log_path(folder: Path, process: str) -> Path:
    """Where an agent's folder keeps the process's log."""
    return folder / "logs" / f"{process}.log"


def logged_processes(folder: Path) -> List[str]:
    """The processes that have a log in an agent's folder."""
    return sorted(path.name[: -len(".log")] for path in (folder / "logs").glob("*.log"))


def read_tail(path: Path, count: int) -> List[Line]:
    """The last ``count`` lines, oldest first, across rotated files. Blocks."""
    lines: List[Line] = []
    for number in range(FILES):
        if len(lines) >= count or not numbered(path, number).is_file():
            break
        lines += _newest_first(numbered(path, number), count - len(lines))
    return lines[::-1]


def collect_logs(folder: Path, names: Optional[List[str]], tail: int, since: float = 0.0) -> List[List[Any]]:
    """The last lines of each process as [process, time, text], all in the order of their time. Blocks."""
    processes = names or logged_processes(folder)
    lines = [
        [process, line.time, line.text]
        for process in processes
        for line in read_tail(log_path(folder, process), min(tail, MAX_TAIL))
        if line.time >= since
    ]
    return _newest_within(sorted(lines, key=lambda line: line[1]), _MAX_REPLY_BYTES)


def _newest_within(lines: List[List[Any]], limit: int) -> List[List[Any]]:
    size = 0
    for index in range(len(lines) - 1, -1, -1):
        size += len(lines[index][2]) + 64
        if size > limit:
            return lines[index + 1 :]
    return lines


def _newest_first(path: Path, count: int) -> List[Line]:
    found: List[Line] = []
    for raw in _raw_lines_backwards(path):
        line = parse_line(raw)
        if line is not None:
            found.append(line)
        if len(found) >= count:
            break
    return found


def _raw_lines_backwards(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position > 0:
            start = max(0, position - _BLOCK_BYTES)
            file.seek(start)
            first, *others = (file.read(position - start) + rest).split(b"\n")
            yield from reversed(others)
            position, rest = start, first
        yield rest


def _states(line: bytes) -> List[bytes]:
    """What a line showed, one after the other, as carriage returns redrew it."""
    return [piece for state in line.split(b"\r") for piece in _pieces(state)]


def _pieces(text: bytes) -> List[bytes]:
    return [text[i : i + MAX_LINE_BYTES] for i in range(0, len(text), MAX_LINE_BYTES)]
