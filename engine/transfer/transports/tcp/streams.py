"""A stream of a pair: blocking calls for a thread of its own, which let go of the GIL and give up on a stalled peer."""

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import TransferError

# Between two engines of one host: what is on its way then stays in a core's cache. Measured over loopback, that is half
# as fast again as the kernel's own choice, or more. Connections with longer round trips need larger ones than these.
LOCAL_BUFFER_BYTES = 64 << 10

_Buffers = Sequence[memoryview | bytes]


class Stream:
    """A data connection. Its owner's thread sends or receives; others only shut it down."""

    def __init__(self, sock: socket.socket, stall_s: float) -> None:
        self.sock = sock
        self._stall_s = stall_s
        sock.setblocking(True)  # not settimeout(), which makes a second system call of each
        limit = struct.pack("@ll", int(stall_s), int(stall_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.getsockname()[0] == sock.getpeername()[0]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER_BYTES)

    def send(self, buffers: _Buffers) -> None:
        """Send all of them. Raises OSError, and TransferError where the peer takes nothing for too long."""
        while buffers:
            try:
                sent = self.sock.sendmsg(buffers)
            except BlockingIOError:
                raise TransferError(f"waited {self._stall_s:g} s for the peer to take data", status=504) from None
            buffers = _rest(buffers, sent)

    def receive(self, buffers: Sequence[memoryview]) -> None:
        """Fill all of them. Raises OSError, and TransferError where nothing comes for too long, or the end does."""
        left: _Buffers = buffers
        while left:
            try:
                received, _, _, _ = self.sock.recvmsg_into(left, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise TransferError(f"waited {self._stall_s:g} s for the rest of a frame", status=504) from None
            if not received:
                raise TransferError("the connection ended within a frame")
            left = _rest(left, received)

    def begins(self) -> bool:
        """Wait, for as long as it takes, until something comes; false: the peer has ended the connection."""
        while True:
            with suppress(BlockingIOError):
                return bool(self.sock.recv(1, socket.MSG_PEEK))

    def shut_down(self, *, drop: bool = False) -> None:
        """Wake the thread that waits in it. With drop, the peer shall not get what is still to be sent."""
        with suppress(OSError):  # the peer was first
            if drop:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            self.sock.shutdown(socket.SHUT_RDWR)


def _rest(buffers: _Buffers, done: int) -> _Buffers:
    for place, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[place + 1 :]]
        done -= len(buffer)
    return ()
