"""What a router is told at its start, and the limits of everything that it holds or waits for."""

from dataclasses import dataclass, field
from typing import Literal

PrefillPolicy = Literal["process_tokens", "random", "round_robin"]
DecodePolicy = Literal["request_num", "random", "round_robin"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the router's buffers and waits. Times in seconds, sizes in bytes."""

    head_bytes: int = 32 * 1024  # a request's line and headers
    body_bytes: int = 32 * 1024 * 1024  # a request's body
    head_timeout: float = 10.0  # from a request's first byte to the end of its headers
    body_timeout: float = 60.0  # from the end of the headers to the end of the body
    idle_timeout: float = 75.0  # a client connection between two requests
    linger: float = 2.0  # how long a refused client may still send before its connection is closed
    pipelined: int = 16  # requests read ahead on one connection
    pipelined_bytes: int = 64 * 1024  # of their bodies
    clients: int = 16384  # client connections
    in_flight: int = 8192  # requests being served
    write_buffer: int = 256 * 1024  # bytes waiting for a slow client before its engine is read no further
    connect_timeout: float = 3.0  # to an engine
    stale: float = 1.0  # a kept-alive connection lost sooner than this after a request had been closed before it
    engine_idle: int = 512  # kept-alive connections to one engine
    engine_idle_timeout: float = 60.0
    probe_timeout: float = 3.0  # GET /health of an engine
    probe_interval: float = 5.0
    probe_failures: int = 2  # consecutive failures that take an engine out
    prefill_linger: float = 10.0  # for the prefill's answer after the decode's answer is complete
    abort_timeout: float = 5.0  # an engine's answer to /v1/abort_requests
    tick: float = 1.0  # how often the time limits above are looked at


@dataclass(frozen=True, slots=True)
class Settings:
    """A router's command line and token."""

    host: str = "127.0.0.1"
    port: int = 0
    splitwise: bool = False
    prefill_policy: PrefillPolicy = "process_tokens"
    decode_policy: DecodePolicy = "request_num"
    mixed_policy: DecodePolicy = "request_num"
    request_timeout: float = 1800.0
    heartbeat_timeout: float = 15.0
    drain: float = 10.0
    token: str | None = None  # None: control calls are open
    limits: Limits = field(default_factory=Limits)
