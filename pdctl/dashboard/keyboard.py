"""Keys from a terminal, without waiting for Enter and without showing them."""

import asyncio
import codecs
import os
import re
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ESCAPE_WAIT_S = 0.1  # after ESC, for the rest of a sequence: the key Escape is an ESC alone
_DISABLED = b"\0"  # _POSIX_VDISABLE
_CHARACTERS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}
_SEQUENCE = re.compile(r"\x1b(?:\[(?P<parameters>[0-?]{0,16})[ -/]{0,4}|O)(?P<final>[@-~])")
_BEGUN = re.compile(r"\x1b(?:\[[0-?]{0,16}[ -/]{0,4}|O)?")
_FINALS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end"}
_NUMBERS = {"1": "home", "7": "home", "4": "end", "8": "end", "5": "page up", "6": "page down"}  # before a final "~"


class KeyDecoder:
    """Turns the bytes of a terminal into keys, wherever reads may cut them.

    A key is a character, or one of ``enter``, ``backspace``, ``escape``, ``up``, ``down``, ``left``, ``right``,
    ``home``, ``end``, ``page up``, ``page down``. Others are left out.
    """

    def __init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("ignore")
        self._rest = ""  # a sequence that has begun

    @property
    def is_waiting(self) -> bool:
        """Whether an ESC has come that may be the first of a sequence, or a key."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are complete."""
        text, self._rest = self._rest + self._characters.decode(data), ""
        keys, at = [], 0
        while at < len(text):
            begun = _BEGUN.match(text, at)
            if begun is None:
                keys.append(_character(text[at]))
                at += 1
            elif sequence := _SEQUENCE.match(text, at):
                keys.append(_named(sequence))
                at = sequence.end()
            elif begun.end() == len(text):
                self._rest = text[at:]
                break
            else:
                keys.append(_of_begun(begun[0]))
                at = begun.end()
        return [key for key in keys if key]

    def flush(self) -> list[str]:
        """Return what has come, as nothing has followed it."""
        rest, self._rest = self._rest, ""
        return [key for key in [_of_begun(rest)] if key]


@contextmanager
def key_presses(fd: int, on_key: Callable[[str], None], on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_key`` on the running loop for each key pressed on the terminal ``fd``, ``on_end`` when it is gone.

    Ctrl-C still interrupts. The terminal is set back on the way out, whatever the reason.
    """
    with _unbuffered(fd):
        reader = _Reader(fd, on_key, on_end)
        try:
            yield
        finally:
            reader.close()


class _Reader:
    """Reads keys whenever there are some."""

    def __init__(self, fd: int, on_key: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_key = on_key
        self._on_end = on_end
        self._decoder = KeyDecoder()
        self._loop = asyncio.get_running_loop()
        self._flush: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._flush is not None:
            self._flush.cancel()

    def _read(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
        data = _read(self._fd)
        if not data:
            self.close()
            self._on_end()
        self._pass_on(self._decoder.feed(data))
        if self._decoder.is_waiting:
            self._flush = self._loop.call_later(ESCAPE_WAIT_S, lambda: self._pass_on(self._decoder.flush()))

    def _pass_on(self, keys: list[str]) -> None:
        for key in keys:
            self._on_key(key)


def _character(text: str) -> str:
    return _CHARACTERS.get(text) or (text if text.isprintable() else "")


def _named(sequence: re.Match[str]) -> str:
    if sequence["final"] == "~":
        return _NUMBERS.get((sequence["parameters"] or "").partition(";")[0], "")
    return _FINALS.get(sequence["final"], "")


def _of_begun(text: str) -> str:
    return "escape" if text == "\x1b" else ""


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1024)
    except OSError:  # EIO: the terminal hung up
        return b""


@contextmanager
def _unbuffered(fd: int) -> Iterator[None]:
    saved = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[tty.LFLAG] &= ~(termios.ECHO | termios.ICANON)
    changed[tty.CC][termios.VMIN], changed[tty.CC][termios.VTIME] = 1, 0
    # A suspended dashboard would leave the shell in its screen.
    changed[tty.CC][termios.VSUSP] = _DISABLED
    termios.tcsetattr(fd, termios.TCSANOW, changed)
    try:
        yield
    finally:
        _restore(fd, saved)


def _restore(fd: int, attributes: list[int | list[bytes | int]]) -> None:
    try:
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error:
        if os.isatty(fd):  # otherwise it hung up: nothing is left to set back
            raise
