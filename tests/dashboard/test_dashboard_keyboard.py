import asyncio
import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.dashboard.keyboard import KeyDecoder, key_presses

NAMES = {"enter", "backspace", "escape", "up", "down", "left", "right", "home", "end", "page up", "page down"}


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    open_ends = [master, slave]
    yield open_ends
    for fd in open_ends:
        os.close(fd)


async def next_key(keys):
    async with asyncio.timeout(10):
        return await keys.get()


async def test_keys_come_at_once_and_are_not_echoed(terminal):
    master, slave = terminal
    before, keys = termios.tcgetattr(slave), asyncio.Queue()
    with key_presses(slave, keys.put_nowait, lambda: None):
        os.write(master, "pé\r".encode())
        assert [await next_key(keys) for _ in range(3)] == ["p", "é", "enter"]
        os.write(slave, b"drawn")
        assert os.read(master, 100) == b"drawn"
    assert termios.tcgetattr(slave) == before


async def test_ctrl_c_is_left_to_interrupt_but_ctrl_z_would_leave_the_shell_in_the_screen(terminal):
    _, slave = terminal
    with key_presses(slave, lambda key: None, lambda: None):
        attributes = termios.tcgetattr(slave)
        assert attributes[3] & termios.ISIG
        assert attributes[6][termios.VINTR] == b"\x03"
        assert attributes[6][termios.VSUSP] == b"\x00"


async def test_terminal_is_set_back_after_an_exception_and_keys_are_left_alone(terminal):
    master, slave = terminal
    before, keys = termios.tcgetattr(slave), asyncio.Queue()
    with pytest.raises(RuntimeError), key_presses(slave, keys.put_nowait, lambda: None):
        raise RuntimeError
    assert termios.tcgetattr(slave) == before
    os.write(master, b"later\n")
    await asyncio.sleep(0)
    assert os.read(slave, 100) == b"later\n"
    assert keys.empty()


async def test_a_hang_up_is_told_once(terminal):
    master, slave = terminal
    ended = asyncio.Queue()
    with key_presses(slave, lambda key: None, lambda: ended.put_nowait(True)):
        terminal.remove(master)
        os.close(master)
        assert await next_key(ended)
        await asyncio.sleep(0)
        assert ended.empty()


async def test_an_escape_alone_is_a_key_once_nothing_has_followed_it(terminal):
    master, slave = terminal
    keys = asyncio.Queue()
    with key_presses(slave, keys.put_nowait, lambda: None):
        os.write(master, b"\x1b")
        assert await next_key(keys) == "escape"
        os.write(master, b"\x1b[5")
        os.write(master, b"~q")
        assert [await next_key(keys) for _ in range(2)] == ["page up", "q"]


def decoded(*reads):
    decoder = KeyDecoder()
    keys = [key for data in reads for key in decoder.feed(data)]
    return keys + decoder.flush()


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aZ1/", ["a", "Z", "1", "/"]),
        (b"\r\n", ["enter", "enter"]),
        (b"\x7f\x08", ["backspace", "backspace"]),
        (b"\x1b", ["escape"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x1b[A\x1b[B\x1b[C\x1b[D", ["up", "down", "right", "left"]),
        (b"\x1bOA\x1bOB\x1bOH\x1bOF", ["up", "down", "home", "end"]),  # in a terminal's application mode
        (b"\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[7~\x1b[8~", ["home", "end", "home", "end", "home", "end"]),
        (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        (b"\x1b[1;5C\x1b[5;2~", ["right", "page up"]),  # with Ctrl, Shift
        (b"\x1b[15~\x1bOP\x1b[3~\x1b[Zx", ["x"]),  # keys that have no meaning here
        (b"\x1b[1\xc3\xa9", ["é"]),  # a sequence that breaks off
        (b"\x1b[", []),
        (b"\x00\x01\x0c\xff", []),
        ("日".encode(), ["日"]),
    ],
)
def test_decoding(data, keys):
    assert decoded(data) == keys


@given(st.lists(st.sampled_from([b"a", b"\x1b", b"[", b"O", b"5", b";", b"~", b"A", b"q", "é".encode(), b"\xff"])))
def test_wherever_reads_cut_the_bytes_the_keys_are_the_same(parts):
    data = b"".join(parts)
    whole = decoded(data)
    assert decoded(*(bytes([byte]) for byte in data)) == whole
    assert all(decoded(data[:at], data[at:]) == whole for at in range(len(data)))


@given(st.binary(max_size=60))
def test_any_bytes_are_keys_or_nothing_and_nothing_is_kept_for_long(data):
    decoder = KeyDecoder()
    keys = decoder.feed(data) + decoder.flush()
    assert all((len(key) == 1 and key.isprintable()) or key in NAMES for key in keys)
    assert not decoder.is_waiting
    assert len(decoder.feed(b"\x1b[" + b"1" * 100)) >= 70
