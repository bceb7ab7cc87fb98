"""Decode's side: a thread for each stream, which receives straight into the pool."""

import asyncio
import logging
import socket
import threading
import time

import msgspec

from engine.errors import TransferError
from engine.kv.pool import KVPool
from engine.transfer.doorway import Doorway
from engine.transfer.transports.tcp.frames import ACK, HEAD, SPAN_BYTES, Head, Span, decode_head, decode_spans
from engine.transfer.transports.tcp.memory import stage
from engine.transfer.transports.tcp.streams import Stream

logger = logging.getLogger(__name__)


class Offer(msgspec.Struct, frozen=True):
    """What prefill needs to get in."""

    port: int
    key: bytes
    streams: int
    pool_bytes: int


class TcpInlet:
    """Takes the streams of one prefill engine. They end together: all when one of them has failed."""

    def __init__(self, pool: KVPool, doorway: Doorway, streams: int, stall_s: float) -> None:
        self._pool = pool
        self._doorway = doorway
        self._places = streams
        self._stall_s = stall_s
        self._key = doorway.make_door(self._on_guest)
        self._arrivals = Arrivals(stall_s)
        self._lock = threading.Lock()  # between shutting a stream down and closing it
        self._streams: set[Stream] = set()
        self._threads: list[threading.Thread] = []
        self._ended = False
        self.offer = msgspec.msgpack.encode(Offer(doorway.port, self._key, streams, pool.nbytes))

    async def drained(self) -> None:
        """Admit no writer from now on, and end the streams; returns when no byte can be written any more."""
        self.close()
        await asyncio.get_running_loop().run_in_executor(None, self._join)

    def close(self) -> None:
        """Let go of the streams; their threads end when they see that."""
        self._doorway.close_door(self._key)
        self._end()

    def _on_guest(self, sock: socket.socket) -> None:
        if self._ended or not self._places:
            sock.close()
            return
        self._places -= 1
        stream = Stream(sock, self._stall_s)
        self._streams.add(stream)
        # A daemon: an engine that ends without having closed this does not wait for its peer.
        thread = threading.Thread(target=self._run, args=(stream,), name="kv-receive", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, stream: Stream) -> None:
        try:
            self._receive(stream)
        except (OSError, TransferError) as error:
            if not self._ended:
                logger.warning("a KV data connection has failed: %s", error)
        except Exception:
            logger.exception("a KV data connection has failed here")
        finally:
            self._end()
            with self._lock:
                self._streams.discard(stream)
                stream.sock.close()

    def _receive(self, stream: Stream) -> None:
        staging = stage(self._pool)
        while stream.begins():
            head, spans = self._next(stream)
            self._arrivals.admit(head)
            stream.receive(staging.incoming(spans))
            staging.landed(spans)
            if self._arrivals.complete(head, sum(span.nbytes for span in spans)):
                stream.send([ACK.pack(head.push)])

    def _next(self, stream: Stream) -> tuple[Head, list[Span]]:
        data = bytearray(HEAD.size)
        stream.receive([memoryview(data)])
        head = decode_head(data)
        data = bytearray(head.spans * SPAN_BYTES)
        stream.receive([memoryview(data)])
        return head, decode_spans(data, self._pool.nbytes)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            for stream in self._streams:
                stream.shut_down()
        self._arrivals.end()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


class Arrivals:
    """Lets one push in after the other, whichever streams their frames come on, and knows when one is complete."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._news = threading.Condition()
        self._push = 1
        self._arrived = 0  # bytes of it
        self._moved = time.monotonic()
        self._ended = False

    def admit(self, head: Head) -> None:
        """Wait until all pushes before it are complete. Raises TransferError where they do not come, or at the end."""
        with self._news:
            while self._push < head.push and not self._ended:
                if not self._news.wait(self._stall_s) and time.monotonic() - self._moved >= self._stall_s:
                    raise TransferError(f"waited {self._stall_s:g} s for push {self._push}, which {head.push} follows")
            if self._ended:
                raise TransferError("the connections are being closed")
            if head.push < self._push:
                raise TransferError(f"a frame of push {head.push} came when that was complete")

    def complete(self, head: Head, nbytes: int) -> bool:
        """That many bytes more of it have arrived: are these all? Raises TransferError if they are too many."""
        with self._news:
            self._arrived += nbytes
            self._moved = time.monotonic()
            if head.push != self._push or self._arrived > head.push_bytes:
                raise TransferError(f"push {head.push} has more than the {head.push_bytes} bytes that it should have")
            if self._arrived < head.push_bytes:
                return False
            self._push, self._arrived = self._push + 1, 0
            self._news.notify_all()
            return True

    def end(self) -> None:
        """Nothing is let in any more."""
        with self._news:
            self._ended = True
            self._news.notify_all()
