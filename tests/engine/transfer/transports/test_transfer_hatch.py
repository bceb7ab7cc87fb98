"""The hatch: who is let in, what a guest gets, and when its host believes that it has gone."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transfer_harness import within

from engine.errors import TransferError
from engine.transfer.transports import hatch as hatch_module
from engine.transfer.transports.hatch import Hatch, enter, leave

# A guest in a process of its own: closes the socket without a goodbye when told to, and goes on living.
_GUEST = """
import socket, sys
guest = socket.socket(socket.AF_UNIX)
guest.connect("\\0" + sys.argv[1])
guest.sendall(bytes.fromhex(sys.argv[2]))
assert guest.recv(100)
print("in", flush=True)
sys.stdin.readline()
guest.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@contextmanager
def guest_process(hatch: Hatch) -> Iterator[subprocess.Popen[str]]:
    """A process that comes to the hatch, and says what it has done."""
    command = [sys.executable, "-c", _GUEST, hatch.name, hatch.key.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def says(process: subprocess.Popen[str]) -> str:
    return (await within(asyncio.to_thread(process.stdout.readline))).strip()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def pending(task: "asyncio.Task[None]") -> bool:
    await asyncio.wait({task}, timeout=0.1)
    return not task.done()


async def test_a_guest_gets_the_grant_and_is_gone_when_it_has_left():
    hatch = Hatch(b"the grant")
    sock, grant = await within(enter(hatch.name, hatch.key))
    assert grant == b"the grant"
    left = asyncio.create_task(hatch.left())
    assert await pending(left)
    leave(sock)
    await within(left)


async def test_one_guest_is_let_in():
    hatch = Hatch(b"")
    sock, _ = await within(enter(hatch.name, hatch.key))
    with pytest.raises(TransferError, match="other network namespaces"):
        await within(enter(hatch.name, hatch.key))
    leave(sock)
    await within(hatch.left())


async def test_nobody_is_let_in_any_more():
    hatch = Hatch(b"")
    await within(hatch.left())
    with pytest.raises(TransferError, match="other network namespaces"):
        await within(enter(hatch.name, hatch.key))


@pytest.mark.parametrize("key", [b"k" * 32, b"short"])
async def test_the_wrong_key_gets_nothing_and_keeps_nobody_out(key: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hatch_module, "_KEY_TIMEOUT_S", 0.1)
    hatch = Hatch(b"the grant")
    with pytest.raises(TransferError, match="did not hand out its memory"):
        await within(enter(hatch.name, key))
    sock, _ = await within(enter(hatch.name, hatch.key))
    leave(sock)
    await within(hatch.left())


async def test_a_stranger_that_goes_away_keeps_nobody_out():
    hatch = Hatch(b"")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"\0{hatch.name}")
    sock, _ = await within(enter(hatch.name, hatch.key))
    leave(sock)
    await within(hatch.left())


async def test_without_a_goodbye_the_end_of_the_process_is_awaited():
    hatch = Hatch(b"the grant")
    with guest_process(hatch) as process:
        assert await says(process) == "in"
        left = asyncio.create_task(hatch.left())
        process.stdin.write("\n")
        process.stdin.flush()
        assert await says(process) == "closed"
        assert await pending(left)
        process.send_signal(signal.SIGKILL)
        await within(left)  # a zombie is enough: nobody has waited for it yet


async def test_a_process_that_cannot_be_watched_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hatch_module, "peer_process", lambda _: 0)  # as for a process of a foreign PID namespace
    hatch = Hatch(b"the grant")
    with pytest.raises(TransferError, match=r"it cannot watch this process \(another PID namespace\?\)"):
        await within(enter(hatch.name, hatch.key))
    await within(hatch.left())


async def test_the_host_may_go_first():
    hatch = Hatch(b"")
    sock, _ = await within(enter(hatch.name, hatch.key))
    hatch.close()
    await asyncio.wait({hatch._task})
    leave(sock)


async def test_nothing_is_left_open():
    async def come_and_go() -> None:
        hatch = Hatch(b"")
        sock, _ = await within(enter(hatch.name, hatch.key))
        leave(sock)
        await within(hatch.left())
        hatch.close()

    await come_and_go()
    before = open_files()
    for _ in range(10):
        await come_and_go()
    assert open_files() == before
