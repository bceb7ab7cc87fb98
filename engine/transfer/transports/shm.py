"""KV over shared memory ("ipc"): decode's pool is a memfd that a prefill engine on the same host maps and writes.

The memfd travels as a file descriptor over a unix socket in the abstract namespace, so nothing is left behind in any
file system whoever is killed, and that the engines share a host (and network namespace) is proved by the connection.
Prefill keeps the socket open for as long as it may write: its end of file, death included, says that no writer is left.
"""

import asyncio
import mmap
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Pushed
from engine.transfer.waits import finish

_KEY_BYTES = 32
_KEY_TIMEOUT_S = 2.0

_Blocks = np.ndarray[tuple[int, int], np.dtype[np.uint8]]  # [block, byte]


class ShmTransport:
    """Moves KV between pools in the memory of one host."""

    name = "ipc"

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool

    def open_inlet(self) -> "ShmInlet":
        """Make the way in for one prefill engine."""
        return ShmInlet(self._pool)

    async def connect(self, offer: bytes) -> "ShmWriter":
        """Map the pool behind a decode engine's offer. Raises TransferError with the reason."""
        try:
            terms = msgspec.msgpack.decode(offer, type=_Offer)
        except msgspec.DecodeError as error:
            raise TransferError(f"its shared memory offer is malformed: {error}") from None
        own = _own_blocks(self._pool)
        if terms.block_bytes != own.shape[1]:
            raise TransferError(f"KV block bytes differ: prefill has {own.shape[1]}, decode has {terms.block_bytes}")
        sock, fd = await _fetch_fd(terms)
        try:
            return ShmWriter(sock, _map(fd, terms), own)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(fd)


class ShmInlet:
    """Hands the pool's memfd to the one prefill engine that shows the key, then watches for its end."""

    def __init__(self, pool: KVPool) -> None:
        if pool.fd is None:
            raise ValueError("the KV pool is not shared: it has no memfd to hand out")
        self._fd = pool.fd
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._writing = False
        name = f"pdctl-kv-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{name}")
        self._listener.listen(8)
        block_bytes = pool.layout.block_bytes
        self.offer = msgspec.msgpack.encode(_Offer(name, self._key, pool.num_blocks, block_bytes))
        self._task = asyncio.create_task(self._watch())

    async def drained(self) -> None:
        """Admit no writer from now on; return when none is left."""
        if not self._writing:
            self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()  # if watching failed, nobody may believe that the writer has gone

    def close(self) -> None:
        """Let go of the sockets."""
        self._task.cancel()
        self._listener.close()

    async def _watch(self) -> None:
        with self._listener:
            writer = await self._authenticated_writer()
        with writer:
            self._writing = True  # no await before the descriptor has left: drained() sees both or neither
            try:
                socket.send_fds(writer, [b"\0"], [self._fd])
                while await asyncio.get_running_loop().sock_recv(writer, 1):
                    pass
            except ConnectionError:
                return  # a reset is an end of file

    async def _authenticated_writer(self) -> socket.socket:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            try:
                if secrets.compare_digest(await _receive_key(client), self._key):
                    return client
            except BaseException:
                client.close()
                raise
            client.close()


class ShmWriter:
    """Writes blocks into a mapped pool, in one thread, so that the pushes of a peer keep their order."""

    def __init__(self, sock: socket.socket, target: _Blocks, own: _Blocks) -> None:
        self.num_blocks = target.shape[0]
        self._sock = sock
        self._target: _Blocks | None = target
        self._own = own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-push")

    async def push(self, source: Sequence[int], target: Sequence[int]) -> Pushed:
        """Copy block source[i] to the peer's block target[i]; returns, or raises, when nothing is being written."""
        if self._target is None:
            raise TransferError("its memory is no longer mapped")
        runs = list(merge_runs(source, target))
        copy = asyncio.get_running_loop().run_in_executor(self._thread, _copy, runs, self._own, self._target)
        return Pushed(len(source) * self._own.shape[1], await finish(copy))

    async def close(self) -> None:
        """Wait for the pushes in flight, unmap, then close the socket: decode takes that for the writer's end."""
        self._target = None
        try:
            await finish(asyncio.get_running_loop().run_in_executor(self._thread, _nothing))
        finally:
            self._thread.shutdown(wait=False)
            self._sock.close()


class Run(NamedTuple):
    """Neighbouring blocks whose targets are neighbours too: one copy."""

    source: int
    target: int
    blocks: int


def merge_runs(source: Sequence[int], target: Sequence[int]) -> Iterator[Run]:
    """Merge pairs of blocks into the longest runs, in order."""
    start = 0
    for i in range(1, len(source) + 1):
        if i < len(source) and source[i] == source[i - 1] + 1 and target[i] == target[i - 1] + 1:
            continue
        yield Run(source[start], target[start], i - start)
        start = i


class _Offer(msgspec.Struct, frozen=True):
    socket: str
    key: bytes
    num_blocks: int
    block_bytes: int


async def _fetch_fd(terms: _Offer) -> tuple[socket.socket, int]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, f"\0{terms.socket}")
        await loop.sock_sendall(sock, terms.key)
        await _readable(sock)
        # Without CLOEXEC a child of this process would keep the pool's memory.
        _, fds, _, _ = socket.recv_fds(sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:
            raise TransferError("it did not hand out its shared memory (wrong key, or it is closing)")
        return sock, fds[0]
    except ConnectionRefusedError:
        sock.close()
        raise TransferError(
            "its shared memory cannot be reached: 'ipc' needs prefill and decode on one host, in one network namespace"
        ) from None
    except OSError as error:
        sock.close()
        raise TransferError(f"its shared memory cannot be reached: {error}") from None
    except BaseException:
        sock.close()
        raise


def _map(fd: int, terms: _Offer) -> _Blocks:
    nbytes = terms.num_blocks * terms.block_bytes
    size = os.fstat(fd).st_size
    if size < nbytes:  # writing past the end of a mapped file is SIGBUS
        raise TransferError(f"its shared memory has {size} bytes, its offer says {nbytes}")
    memory = mmap.mmap(fd, nbytes)
    return np.frombuffer(memory, dtype=np.uint8).reshape(terms.num_blocks, terms.block_bytes)


def _own_blocks(pool: KVPool) -> _Blocks:
    array: _Blocks = pool.tensor.view(-1).view(torch.uint8).view(pool.num_blocks, -1).numpy()
    return array


def _copy(runs: list[Run], source: _Blocks, target: _Blocks) -> float:
    """Runs in the writer's thread; numpy lets go of the GIL while it copies. Returns the seconds it took."""
    started = time.perf_counter()
    for run in runs:
        np.copyto(target[run.target : run.target + run.blocks], source[run.source : run.source + run.blocks])
    return time.perf_counter() - started


def _nothing() -> None:
    """Stand at the end of the writer thread's queue."""


async def _receive_key(client: socket.socket) -> bytes:
    """Return what the client says first; a client that says nothing in time has said the empty key."""
    client.setblocking(False)
    try:
        async with asyncio.timeout(_KEY_TIMEOUT_S):
            return await asyncio.get_running_loop().sock_recv(client, _KEY_BYTES)
    except (TimeoutError, ConnectionError):
        return b""


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
