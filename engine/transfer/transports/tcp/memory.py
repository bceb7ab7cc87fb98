"""A pool's bytes as system calls take them: in place, or by way of pinned memory where the pool is on a GPU."""

from collections.abc import Sequence
from typing import Protocol

import torch

from engine.kv.pool import KVPool
from engine.transfer.transports.tcp.frames import FRAME_BYTES, Span


class Staging(Protocol):
    """One thread's access to a pool, for the spans of one frame at a time."""

    def outgoing(self, spans: Sequence[Span]) -> list[memoryview]:
        """Their bytes."""
        ...

    def incoming(self, spans: Sequence[Span]) -> list[memoryview]:
        """Where their bytes are to be received."""
        ...

    def landed(self, spans: Sequence[Span]) -> None:
        """They have been received; on return they are in the pool."""
        ...


def stage(pool: KVPool) -> Staging:
    """To be called by the thread that will use it."""
    flat = pool.tensor.view(-1).view(torch.uint8)
    return _Bounce(flat) if flat.is_cuda else _InPlace(flat)


class _InPlace:
    def __init__(self, flat: torch.Tensor) -> None:
        self._pool = flat.numpy().data

    def outgoing(self, spans: Sequence[Span]) -> list[memoryview]:
        return [self._pool[span.at : span.at + span.nbytes] for span in spans]

    def incoming(self, spans: Sequence[Span]) -> list[memoryview]:
        return self.outgoing(spans)

    def landed(self, spans: Sequence[Span]) -> None:
        pass


class _Bounce:
    def __init__(self, flat: torch.Tensor) -> None:
        self._pool = flat
        self._pinned = torch.empty(FRAME_BYTES, dtype=torch.uint8, pin_memory=True)
        self._bytes = self._pinned.numpy().data
        self._stream = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]

    def outgoing(self, spans: Sequence[Span]) -> list[memoryview]:
        self._copy(spans, to_pool=False)
        return self.incoming(spans)

    def incoming(self, spans: Sequence[Span]) -> list[memoryview]:
        return [self._bytes[: sum(span.nbytes for span in spans)]]

    def landed(self, spans: Sequence[Span]) -> None:
        self._copy(spans, to_pool=True)

    def _copy(self, spans: Sequence[Span], *, to_pool: bool) -> None:
        begin = 0
        with torch.cuda.stream(self._stream):
            for span in spans:
                here = self._pool[span.at : span.at + span.nbytes]
                pinned = self._pinned[begin : begin + span.nbytes]
                if to_pool:
                    here.copy_(pinned, non_blocking=True)
                else:
                    pinned.copy_(here, non_blocking=True)
                begin += span.nbytes
        self._stream.synchronize()
