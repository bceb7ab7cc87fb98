"""Prefill's side: a thread for each stream, which sends straight from the pool."""

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.base import Computed, Pushed
from engine.transfer.blocks import Copy, Fit, copies
from engine.transfer.transports.tcp.frames import ACK, Span, cut, encode_head
from engine.transfer.transports.tcp.memory import Staging, stage
from engine.transfer.transports.tcp.streams import Stream
from engine.transfer.waits import fail, finish

logger = logging.getLogger(__name__)


class TcpWriter:
    """Sends pushes as frames: each stream takes the next one when it is free. Decode confirms whole pushes.

    When it has failed, bytes that are on their way may still be written, until decode has drained its inlet.
    """

    def __init__(self, socks: Sequence[socket.socket], pool: KVPool, fit: Fit, stall_s: float) -> None:
        self.failure: TransferError | None = None
        self._pool = pool
        self._fit = fit
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._count = 0
        self._pushes: dict[int, _Push] = {}  # not confirmed
        self._frames: queue.SimpleQueue[_Frame | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the pushes' counts of frames
        self._moved = 0.0  # when a frame has left, or a push was confirmed
        self._timer: asyncio.TimerHandle | None = None
        self._streams = [Stream(sock, stall_s) for sock in socks]
        self._threads = [
            threading.Thread(target=self._run, args=(stream,), name="kv-send", daemon=True) for stream in self._streams
        ]
        for stream, thread in zip(self._streams, self._threads, strict=True):
            self._loop.add_reader(stream.sock, self._on_readable, stream, bytearray())
            stream.sock.setblocking(True)  # uvloop has undone that
            thread.start()

    @property
    def failed(self) -> bool:
        """Whether it is of no use any more."""
        return self.failure is not None

    async def push(self, source: Sequence[int], target: Sequence[int], after: Computed | None = None) -> Pushed:
        """Copy block source[i] to the peer's block target[i]; returns when decode has confirmed that it is there.

        A push that is cancelled is completed before that is raised.
        """
        if self.failure is not None:
            raise self.failure
        if self._closed:
            raise TransferError("its data connections are closed")
        runs = copies(source, target, self._fit)
        if not runs:
            return Pushed(0, 0.0)
        push = self._begin(runs, len(source) * self._fit.nbytes, after)
        confirmed = await finish(push.confirmed)
        return Pushed(push.nbytes, confirmed - push.began)

    async def close(self) -> None:
        """Wait for the pushes in flight, then close the streams: decode takes that for the writer's end."""
        self._closed = True
        await finish(asyncio.ensure_future(self._close()))

    def _begin(self, runs: list[Copy], nbytes: int, after: Computed | None) -> "_Push":
        self._count += 1
        parts = list(cut(runs))
        push = self._pushes[self._count] = _Push(self._count, nbytes, after, len(parts), self._loop.create_future())
        for part in parts:
            self._frames.put(_Frame(push, part))
        if self._timer is None:
            self._timer = self._loop.call_later(self._stall_s, self._watch)
        return push

    def _watch(self) -> None:
        """Give up on a decode engine that has been sent a push and does not confirm it; sending has its own limit."""
        self._timer = None
        if not self._pushes:
            return
        oldest = next(iter(self._pushes.values()))
        quiet = 0.0 if oldest.unsent else time.monotonic() - self._moved
        if quiet < self._stall_s:
            self._timer = self._loop.call_later(self._stall_s - quiet, self._watch)
        else:
            self._fail(f"waited {self._stall_s:g} s for decode to confirm a push", 504)

    async def _close(self) -> None:
        if self._pushes:
            await asyncio.wait([push.confirmed for push in self._pushes.values()])
        if self._timer is not None:
            self._timer.cancel()
        self._end_threads()
        await self._loop.run_in_executor(None, self._join)
        while self._streams:
            stream = self._streams.pop()
            self._loop.remove_reader(stream.sock)
            stream.sock.close()

    def _on_readable(self, stream: Stream, acks: bytearray) -> None:
        try:
            received = stream.sock.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"a data connection is lost: {error}")
            return
        if not received:
            self._fail("decode closed a data connection")
            return
        acks += received
        whole = len(acks) // ACK.size * ACK.size
        for (number,) in ACK.iter_unpack(acks[:whole]):
            self._on_confirmed(number)
        del acks[:whole]

    def _on_confirmed(self, number: int) -> None:
        push = self._pushes.pop(number, None)
        if push is None:
            self._fail(f"decode confirmed push {number}, which is not on its way")
            return
        self._moved = time.monotonic()
        push.confirmed.set_result(self._moved)

    def _fail(self, reason: str, status: int = 502) -> None:
        """End the streams, and with them the pushes in flight. The first reason counts: later ones follow from it."""
        if self.failure is not None:
            return
        self.failure = TransferError(reason, status=status)
        for stream in self._streams:
            self._loop.remove_reader(stream.sock)
            stream.shut_down(drop=True)
        self._end_threads()
        for push in self._pushes.values():
            fail(push.confirmed, self.failure)
        self._pushes.clear()

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._frames.put(None)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, stream: Stream) -> None:
        try:
            staging = stage(self._pool)
            while (frame := self._frames.get()) is not None:
                if self.failure is None:
                    self._send(frame, stream, staging)
        except (OSError, TransferError) as error:
            self._loop.call_soon_threadsafe(self._fail, f"sending has failed: {error}")
        except Exception as error:
            logger.exception("sending KV has failed here")
            self._loop.call_soon_threadsafe(self._fail, f"sending has failed here: {error!r}", 500)

    def _send(self, frame: "_Frame", stream: Stream, staging: Staging) -> None:
        push, part = frame
        if push.after is not None:
            push.after.synchronize()
        push.began = push.began or time.monotonic()
        head = encode_head(push.number, push.nbytes, part)
        stream.send([head, *staging.outgoing([Span(run.source, run.nbytes) for run in part])])
        with self._lock:
            push.unsent -= 1
            self._moved = time.monotonic()


class _Push:
    """What is known of a push until decode has confirmed it."""

    def __init__(
        self, number: int, nbytes: int, after: Computed | None, frames: int, confirmed: "asyncio.Future[float]"
    ) -> None:
        self.number = number
        self.nbytes = nbytes
        self.after = after
        self.unsent = frames
        self.began = 0.0
        self.confirmed = confirmed  # when


class _Frame(NamedTuple):
    push: _Push
    part: list[Copy]
