"""How one process of this host gets a few bytes from another one, which then watches for its end.

The host's part is a unix socket in the abstract namespace, so nothing is left behind in any file system whoever is
killed. The guest shows a key, gets the grant, and keeps the socket open for as long as it may use what it was granted;
it says goodbye before it closes it. An end of file without a goodbye is the guest's death, and then the end of its
process is waited for: the kernel closes the files of a dying process one after the other, the socket perhaps before
the GPU's, and copies that the GPU has been told to make go on until those are closed. When a process is a zombie, or
gone, all of its files are closed (do_exit() in the kernel: exit_files and exit_task_work come before exit_notify).
"""

import asyncio
import os
import secrets
import socket
import struct

import msgspec

from engine.errors import TransferError
from engine.transfer.doorway import KEY_BYTES, receive_exactly

_KEY_TIMEOUT_S = 2.0
_GOODBYE = b"\0"
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Hatch:
    """Lets in the one process that shows the key. Made in the event loop."""

    def __init__(self, grant: bytes) -> None:
        self.name = f"pdctl-kv-{secrets.token_hex(16)}"
        self.key = secrets.token_bytes(KEY_BYTES)
        self._grant = grant
        self._let_in = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen(8)
        self._task = asyncio.create_task(self._watch())

    async def left(self) -> None:
        """Let nobody in from now on; return when nobody is left who got the grant, also by death."""
        if not self._let_in:
            self._task.cancel()
        await asyncio.wait({self._task})
        self._listener.close()  # a task that has been cancelled before its first step has not
        if not self._task.cancelled():
            self._task.result()  # if watching failed, nobody may believe that the guest has gone

    def close(self) -> None:
        """Let go of the sockets."""
        self._task.cancel()
        self._listener.close()

    async def _watch(self) -> None:
        with self._listener:
            guest, process = await self._receive()
        try:
            self._let_in = True  # no await between the guest's coming and the grant's leaving: left() sees both or none
            _answer(guest, _Answer(grant=self._grant))
            if not await _says_goodbye(guest):
                await _readable(process)
        except BrokenPipeError:
            return  # it had gone before it could get anything
        finally:
            guest.close()
            os.close(process)

    async def _receive(self) -> tuple[socket.socket, int]:
        """The guest's socket, and its process as a descriptor."""
        while True:
            guest, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            try:
                process = await self._check(guest)
            except (OSError, TransferError):  # a stranger that goes away, or says nothing in time, keeps nobody out
                process = None
            except BaseException:
                guest.close()
                raise
            if process is not None:
                return guest, process
            guest.close()

    async def _check(self, guest: socket.socket) -> int | None:
        guest.setblocking(False)
        async with asyncio.timeout(_KEY_TIMEOUT_S):
            key = await receive_exactly(guest, KEY_BYTES)
        if not secrets.compare_digest(key, self.key):
            return None
        try:
            return os.pidfd_open(peer_process(guest))
        except OSError as error:
            _answer(guest, _Answer(refusal=f"it cannot watch this process (another PID namespace?): {error.strerror}"))
            return None


async def enter(name: str, key: bytes) -> tuple[socket.socket, bytes]:
    """The guest's part: the socket to keep, and the grant. Raises TransferError; the caller has a deadline."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, f"\0{name}")
        answer = await _ask(sock, key)
    except ConnectionRefusedError:
        sock.close()
        raise TransferError("one host, but other network namespaces (containers?): its socket is not here") from None
    except OSError as error:
        sock.close()
        raise TransferError(f"its socket cannot be reached: {error}") from None
    except BaseException:
        sock.close()
        raise
    if answer.refusal:
        sock.close()
        raise TransferError(answer.refusal)
    return sock, answer.grant


def leave(sock: socket.socket) -> None:
    """The guest's end: what it was granted, it uses no more."""
    try:
        sock.send(_GOODBYE)
    except ConnectionError:
        pass  # the host has gone: nobody is left to be told
    finally:
        sock.close()


def peer_process(sock: socket.socket) -> int:
    """The pid of the process that made the other end; 0 where it cannot be seen from this PID namespace."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    grant: bytes = b""
    refusal: str = ""


def _answer(guest: socket.socket, answer: _Answer) -> None:
    data = msgspec.msgpack.encode(answer)
    guest.send(_LENGTH.pack(len(data)) + data)  # the first bytes on a socket: they fit its buffer


async def _ask(sock: socket.socket, key: bytes) -> _Answer:
    await asyncio.get_running_loop().sock_sendall(sock, key)
    try:
        length = _LENGTH.unpack(await receive_exactly(sock, _LENGTH.size))[0]
        return msgspec.msgpack.decode(await receive_exactly(sock, length), type=_Answer)
    except (TransferError, ConnectionError):
        raise TransferError("it did not hand out its memory (wrong key, or it is closing)") from None


async def _says_goodbye(guest: socket.socket) -> bool:
    try:
        return await asyncio.get_running_loop().sock_recv(guest, 1) == _GOODBYE
    except ConnectionError:
        return False  # a reset is an end of file


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
