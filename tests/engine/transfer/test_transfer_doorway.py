"""The port for data connections: only who knows a key gets in, and nobody keeps the others out."""

import asyncio
import gc
import socket

import pytest
from transfer_harness import kernel_objects, within

from engine.errors import TransferError
from engine.transfer import doorway
from engine.transfer.doorway import KEY_BYTES, Doorway, knock


@pytest.fixture
async def door():
    opened = Doorway()
    await opened.open("127.0.0.1", 0)
    yield opened
    await within(opened.close())


async def test_each_key_leads_to_its_own_door(door: Doorway):
    guests: dict[str, asyncio.Queue[socket.socket]] = {name: asyncio.Queue() for name in "ab"}
    keys = {name: door.make_door(queue.put_nowait) for name, queue in guests.items()}
    for name in "abba":
        ours = await within(knock("127.0.0.1", door.port, keys[name]))
        theirs = await within(guests[name].get())
        assert ours.getsockname() == theirs.getpeername()
        ours.close()
        theirs.close()
    assert all(queue.empty() for queue in guests.values())


@pytest.mark.parametrize("said", [b"x" * KEY_BYTES, b"x" * (KEY_BYTES - 1), b""])
async def test_without_a_key_nobody_gets_in(door: Doorway, said: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doorway, "_KEY_TIMEOUT_S", 0.1)
    guests: asyncio.Queue[socket.socket] = asyncio.Queue()
    key = door.make_door(guests.put_nowait)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(said)
    assert await within(reader.read()) == b""
    writer.close()
    assert guests.empty()
    (await within(knock("127.0.0.1", door.port, key))).close()
    (await within(guests.get())).close()


async def test_behind_a_closed_door_is_nobody(door: Doorway):
    key = door.make_door(lambda guest: guest.close())
    door.close_door(key)
    with pytest.raises((TransferError, ConnectionError)):
        await within(knock("127.0.0.1", door.port, key))


async def test_nothing_is_left_open():
    gc.collect()
    before = kernel_objects()
    opened = Doorway()
    await opened.open("127.0.0.1", 0)
    silent = socket.create_connection(("127.0.0.1", opened.port))
    await within(opened.close())
    silent.close()
    assert kernel_objects() == before
