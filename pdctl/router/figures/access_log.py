"""The access log: one JSON line for each request, written by a thread so that no request waits for a disk."""

import asyncio
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from queue import SimpleQueue

import msgspec

from pdctl.errors import PdctlError

log = logging.getLogger(__name__)

STDOUT = "-"
MAX_PENDING = 8 * 1024 * 1024  # bytes not written yet; beyond it lines are dropped
MAX_TEXT = 512  # characters of what clients and engines say
_BATCH = 128 * 1024  # bytes that are handed over at once
_DELAY = 0.1  # seconds after which fewer are
_CLOSING = 5.0  # seconds for the last lines
_PIPE_BUF = 4096  # bytes that a pipe takes in one piece, whoever else writes to it

_encode_lines = msgspec.json.Encoder().encode_lines


class AccessRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One request. Fields that have their default are left out of its line."""

    time: datetime  # of its end
    id: str
    client: str  # its address
    route: str
    model: str
    status: int  # 499: the client left before the answer
    outcome: str  # ok, or what went wrong
    duration_ms: float
    error: str = ""  # at most MAX_TEXT characters
    key: str = ""  # the API key's name
    prefill: str = ""  # the instances' keys
    decode: str = ""
    protocol: str = ""
    attempts: int = 1
    resumed: int = 0  # how often its stream was continued on another instance
    stream: bool = False
    prompt_tokens: int = 0  # estimated
    completion_tokens: int | None = None
    cached_tokens: int = 0  # that the instance was expected to hold
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    bytes: int = 0  # of the answer's body


class AccessLog:
    """A file of JSON lines, or standard output. Created in a running event loop; several processes may share a file."""

    def __init__(self, path: str) -> None:
        """Open the file; PdctlError if that fails."""
        self._writer = _Writer(path)
        self._loop = asyncio.get_running_loop()
        self._lines = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._handed_over = 0  # bytes
        self._refused = 0  # lines

    @property
    def dropped(self) -> int:
        """Lines that are missing in the file."""
        return self._refused + self._writer.lost

    def write(self, records: Sequence[AccessRecord]) -> None:
        """Take records. Never blocks."""
        self._lines += _encoded(records)
        if len(self._lines) >= _BATCH:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(_DELAY, self._hand_over)

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one has been moved away."""
        self._hand_over()
        self._writer.do(self._writer.reopen)

    def flush(self) -> None:
        """Wait until everything is written, 5 s at most. Blocks."""
        self._hand_over()
        written = threading.Event()
        self._writer.do(written.set)
        if not written.wait(_CLOSING):
            log.warning("access log: waited %g s for the last lines to be written", _CLOSING)

    def close(self) -> None:
        """Write everything and close the file. Blocks for 5 s at most."""
        self._hand_over()
        self._writer.close()

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, bytearray()
        if not lines:
            return
        if self._handed_over - self._writer.done + len(lines) > MAX_PENDING:
            self._refused += lines.count(b"\n")
            return
        self._handed_over += len(lines)
        self._writer.do(lambda: self._writer.write(lines))


class _Writer:
    """The thread, and the file that it alone touches."""

    def __init__(self, path: str) -> None:
        self.done = 0  # bytes that are not pending any more
        self.lost = 0  # lines that could not be written
        self._path = path
        self._file = _open(path)
        self._in_one_write = _PIPE_BUF if stat.S_ISFIFO(os.fstat(self._file).st_mode) else MAX_PENDING
        self._failing = False
        self._torn = False  # the last line is incomplete
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def do(self, order: Callable[[], None]) -> None:
        """Have the thread do something, after all that it was told before."""
        self._orders.put(order)

    def close(self) -> None:
        """End the thread after all that it was told before."""
        self._orders.put(None)
        self._thread.join(_CLOSING)
        if self._thread.is_alive():
            log.warning("access log %s: waited %g s for the last lines to be written", self._path, _CLOSING)

    # In the thread.

    def write(self, lines: bytearray) -> None:
        """Append whole lines, or count those that are lost."""
        written = 0
        try:
            if self._torn:
                os.write(self._file, b"\n")
                self._torn = False
            for piece in _pieces(lines, self._in_one_write):
                while piece:
                    count = os.write(self._file, piece)
                    written += count
                    piece = piece[count:]
        except OSError as error:
            if written:
                self._torn = lines[written - 1] != ord("\n")
            self.lost += lines.count(b"\n", written)
            self._note(error)
        else:
            self._note(None)
        self.done += len(lines)

    def reopen(self) -> None:
        """Open the file again by its name."""
        if self._path == STDOUT:
            return
        try:
            file = _open(self._path)
        except PdctlError as error:
            log.warning("%s; still writing to the old file", error)
            return
        os.close(self._file)
        self._file, self._torn = file, False

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
        if self._path != STDOUT:
            os.close(self._file)

    def _note(self, error: OSError | None) -> None:
        """Log the first failure, and its end."""
        if error is not None and not self._failing:
            log.error("access log %s: %s: its lines are lost", self._path, error.strerror)
        elif error is None and self._failing:
            log.warning("access log %s is written again; %d lines are missing in all", self._path, self.lost)
        self._failing = error is not None


def _open(path: str) -> int:
    if path == STDOUT:
        return 1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise PdctlError(f"access log {path}: cannot be opened: {error.strerror}") from None


def _pieces(lines: bytearray, size: int) -> Iterator[memoryview]:
    """Whole lines of at most `size` bytes together, or one line."""
    start, view = 0, memoryview(lines)
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + size) + 1 or lines.find(b"\n", start) + 1
        yield view[start:end]
        start = end


def _encoded(records: Sequence[AccessRecord]) -> bytes:
    try:
        return _encode_lines(records)
    except UnicodeEncodeError:  # half a surrogate pair in what a client said
        return _encode_lines([_encodable(record) for record in records])


def _encodable(record: AccessRecord) -> AccessRecord:
    changes = {
        field: value.encode(errors="replace").decode()
        for field, value in msgspec.structs.asdict(record).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(record, **changes)
