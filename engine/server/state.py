"""What the HTTP handlers share: the phase the process is in, and the model once it is loaded."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from aiohttp import web

from engine.args import EngineArgs
from engine.errors import RequestError
from engine.server.kv_events import KvEvents
from engine.server.metrics import ServerMetrics
from engine.server.streams import TokenStreams

if TYPE_CHECKING:
    from engine.core import EngineCore
    from engine.loading.tokenizer import Tokenizer
    from engine.transfer.receiver import DecodeTransfer
    from engine.transfer.sender import PrefillTransfer

STEP_LIMIT_S = 120.0  # a step that takes longer hangs
MAX_REQUESTS = 2048  # being served or waiting; more are refused


class Phase(StrEnum):
    """Where the process is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Backend:
    """The loaded model and what runs it."""

    core: "EngineCore"
    tokenizer: "Tokenizer"
    max_model_len: int
    vocab_size: int  # of the embedding; a tokenizer may know more tokens
    sender: "PrefillTransfer | None" = None  # on a prefill engine
    receiver: "DecodeTransfer | None" = None  # on a decode engine
    pd_comm_port: int = 0  # on a decode engine
    rdma_comm_port: int = 0  # likewise: KV data connections
    transports: tuple[str, ...] = ()  # for KV, the best first


class ServerState:
    """Owned by the event loop."""

    def __init__(self, args: EngineArgs, token: str | None, loop: asyncio.AbstractEventLoop) -> None:
        self.args = args
        self.token = token  # the deployment's; None: control calls are open
        self.phase = Phase.LOADING
        self.streams = TokenStreams(loop)
        self.kv_events = KvEvents(loop)
        self.metrics = ServerMetrics()
        self.idle = asyncio.Event()  # no request is being served
        self.idle.set()
        self.in_flight = 0  # requests
        self.created = int(time.time())
        self._backend: Backend | None = None

    def ready(self, backend: Backend) -> None:
        """Serve from now on."""
        self._backend = backend
        self.phase = Phase.READY

    @property
    def problem(self) -> str | None:
        """Why requests cannot be served now; None if they can."""
        if self.phase != Phase.READY or self._backend is None:
            return f"this engine is {self.phase}"
        busy = self._backend.core.busy_s
        return f"this engine hangs: its step has taken {busy:.0f} s so far" if busy > STEP_LIMIT_S else None

    @property
    def max_model_len(self) -> int | None:
        """The longest prompt plus answer, once the model is loaded."""
        return self._backend.max_model_len if self._backend else self.args.max_model_len

    @property
    def backend(self) -> Backend:
        """What serves. Raises RequestError unless it is ready."""
        if self.phase != Phase.READY or self._backend is None:
            raise RequestError(f"this engine is {self.phase}", status=503, code="not_ready")
        return self._backend

    def check_model(self, name: str | None) -> None:
        """Refuse another model than the one that is served. Raises RequestError."""
        served = self.args.served_model_name
        if name is not None and name != served:
            raise RequestError(f"model {name!r} is not served here; {served!r} is", status=404, code="model_not_found")

    @contextmanager
    def admit(self) -> Iterator[Backend]:
        """Serve a request inside the block. Raises RequestError while none can be taken."""
        backend = self.backend
        if self.in_flight >= MAX_REQUESTS:
            raise RequestError(f"this engine serves {MAX_REQUESTS} requests already", status=503, code="overloaded")
        self.in_flight += 1
        self.idle.clear()
        try:
            yield backend
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()


STATE = web.AppKey("state", ServerState)
