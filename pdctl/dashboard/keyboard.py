"""Keys from a terminal, without waiting for Enter and without showing them."""

import asyncio
import os
import re
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_DISABLED = b"\0"  # _POSIX_VDISABLE
_NAMES = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape"}
# An escape sequence (arrows, function keys, pasted text's marks), else one character.
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)


@contextmanager
def key_presses(fd: int, on_key: Callable[[str], None], on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_key`` on the running loop for each key pressed on the terminal ``fd``, ``on_end`` when it is gone.

    Ctrl-C still interrupts. The terminal is set back on the way out, whatever the reason.
    """
    loop = asyncio.get_running_loop()

    def read() -> None:
        data = _read(fd)
        if not data:
            loop.remove_reader(fd)
            on_end()
        for key in decode_keys(data):
            on_key(key)

    with _unbuffered(fd):
        loop.add_reader(fd, read)
        try:
            yield
        finally:
            loop.remove_reader(fd)


def decode_keys(data: bytes) -> list[str]:
    """Return the keys in ``data``: characters, ``enter``, ``backspace``, ``escape``. Others are left out."""
    keys = _KEY.findall(data.decode(errors="ignore"))
    return [_NAMES.get(key, key) for key in keys if key in _NAMES or (len(key) == 1 and key.isprintable())]


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
