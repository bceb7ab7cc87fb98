import asyncio
import os
import pty
import termios

import pytest

from pdctl.dashboard.keyboard import decode_keys, key_presses


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


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aZ1/", ["a", "Z", "1", "/"]),
        (b"\r\n", ["enter", "enter"]),
        (b"\x7f\x08", ["backspace", "backspace"]),
        (b"\x1b", ["escape"]),
        (b"\x1b[A\x1b[1;5Cx\x1bOP", ["x"]),  # arrows and function keys
        (b"\x00\x01\x0c\xff", []),
        ("日".encode(), ["日"]),
    ],
)
def test_decoding(data, keys):
    assert decode_keys(data) == keys
