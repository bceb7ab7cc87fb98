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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import torch

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Computed, Pushed, Target
from engine.transfer.blocks import Copy, Fit, copies
from engine.transfer.waits import finish

_KEY_BYTES = 32
_KEY_TIMEOUT_S = 2.0

_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]  # a whole pool


class ShmTransport:
    """Moves KV between pools in the memory of one host."""

    name = "ipc"

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool

    async def start(self) -> None:
        """Nothing is to be done: what another process can reach is known when it tries."""

    async def close(self) -> None:
        """Nothing is held."""

    def open_inlet(self) -> "ShmInlet":
        """Make the way in for one prefill engine."""
        return ShmInlet(self._pool)

    async def connect(self, offer: bytes, target: Target) -> "ShmWriter":
        """Map the pool behind a decode engine's offer. Raises TransferError with the reason."""
        try:
            terms = msgspec.msgpack.decode(offer, type=_Offer)
        except msgspec.DecodeError as error:
            raise TransferError(f"its shared memory offer is malformed: {error}") from None
        if terms.boot_id != boot_id():
            raise TransferError("another host (their boot ids differ)")
        sock, fd = await _fetch_fd(terms)
        try:
            return ShmWriter(sock, _map(fd, terms, target), _bytes(self._pool), target.fit)
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
        self.offer = msgspec.msgpack.encode(_Offer(boot_id(), name, self._key, pool.probe))
        self._task = asyncio.create_task(self._watch())

    async def drained(self) -> None:
        """Admit no writer from now on; return when none is left."""
        if not self._writing:
            self._task.cancel()
        await asyncio.wait({self._task})
        self._listener.close()  # a task that has been cancelled before its first step has not
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

    def __init__(self, sock: socket.socket, target: _Bytes, own: _Bytes, fit: Fit) -> None:
        self._sock = sock
        self._target: _Bytes | None = target
        self._fit = fit
        self._own = own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-push")

    @property
    def failed(self) -> bool:
        """Never: a copy in memory ends."""
        return False

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        """Copy block source[i] to the peer's block target[i]; returns, or raises, when nothing is being written."""
        if self._target is None:
            raise TransferError("its memory is no longer mapped")
        runs = copies(source, target, self._fit)
        copy = asyncio.get_running_loop().run_in_executor(self._thread, _copy, runs, self._own, self._target, after)
        return Pushed(len(source) * self._fit.nbytes, await finish(copy))

    async def close(self) -> None:
        """Wait for the pushes in flight, unmap, then close the socket: decode takes that for the writer's end."""
        self._target = None
        try:
            await finish(asyncio.get_running_loop().run_in_executor(self._thread, _nothing))
        finally:
            self._thread.shutdown(wait=False)
            self._sock.close()


class _Offer(msgspec.Struct, frozen=True):
    boot_id: str  # of the kernel: containers of one host have the same
    socket: str
    key: bytes
    probe: bytes  # what lies behind the pool's last block


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
            "one host, but other network namespaces (containers?): its shared memory cannot be reached"
        ) from None
    except OSError as error:
        sock.close()
        raise TransferError(f"its shared memory cannot be reached: {error}") from None
    except BaseException:
        sock.close()
        raise


def _map(fd: int, terms: _Offer, target: Target) -> _Bytes:
    nbytes = target.num_blocks * target.fit.target_stride
    size = os.fstat(fd).st_size
    if size < nbytes + len(terms.probe):  # writing past the end of a mapped file is SIGBUS
        raise TransferError(f"its shared memory has {size} bytes, less than {target.num_blocks} blocks")
    memory = mmap.mmap(fd, nbytes + len(terms.probe))
    if memory[nbytes:] != terms.probe:
        raise TransferError("its shared memory is not the pool that it offered")
    return np.frombuffer(memory, dtype=np.uint8)[:nbytes]


def _bytes(pool: KVPool) -> _Bytes:
    array: _Bytes = pool.tensor.view(-1).view(torch.uint8).numpy()
    return array


def _copy(runs: list[Copy], source: _Bytes, target: _Bytes, after: Computed | None) -> float:
    """Runs in the writer's thread; numpy lets go of the GIL while it copies. Returns the seconds it took."""
    if after is not None:
        after.synchronize()
    started = time.perf_counter()
    for run in runs:
        np.copyto(target[run.target : run.target + run.nbytes], source[run.source : run.source + run.nbytes])
    return time.perf_counter() - started


def boot_id() -> str:
    """What this kernel chose at its start: the same for all containers of a host, and for no other host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


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
