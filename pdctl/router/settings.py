"""What a router is told at its start, and the limits of everything that it holds or waits for."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pdctl.router.access.api_keys import ApiKeys


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the router's buffers and waits. Times in seconds, sizes in bytes."""

    head_bytes: int = 32 * 1024  # a request's line and headers
    body_bytes: int = 32 * 1024 * 1024  # a request's body
    bodies_bytes: int = 1024 * 1024 * 1024  # the bodies of all requests that are read or answered
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
    probe_interval: float = 3.0  # of an engine that gets requests; the others are asked every tick
    probe_failures: int = 2  # consecutive failures that take an engine out
    probe_successes: int = 1  # consecutive successes that bring it in again
    breaker_failures: int = 5  # failed requests in a row that open an engine's breaker
    breaker_open: float = 5.0  # before an engine gets one request to try
    attempts: int = 4  # pairs that a request may be sent to before its answer begins
    retry_deadline: float = 60.0  # after a request's start; then no further attempt
    resumes: int = 8  # how often a stream may go on elsewhere
    resume_wait: float = 15.0  # for an engine that can go on with a stream
    prefill_linger: float = 10.0  # for the prefill's answer after the decode's answer is complete
    prefill_answer_bytes: int = 16 * 1024 * 1024  # of a prefill whose decode needs it
    abort_timeout: float = 5.0  # an engine's answer to /v1/abort_requests
    tick: float = 1.0  # how often the time limits above are looked at


Role = Literal["prefill", "decode", "mixed"]


class FixedInstance(NamedTuple):
    """An engine that is named on the command line."""

    role: Role
    host: str
    port: int
    bootstrap_port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """A router's command line and token."""

    host: str = "127.0.0.1"
    port: int = 0
    splitwise: bool = False
    protocol: str = "builtin"  # of the fixed instances
    fixed: tuple[FixedInstance, ...] = ()
    admitted: dict[str, Role] = field(default_factory=dict)  # by host:port: who may register without the token
    prefill_policy: str = "process_tokens"
    decode_policy: str = "request_num"
    mixed_policy: str = "request_num"
    pd_min_tokens: int = 0  # uncached prompt tokens below which a decode that can prefill does so
    engine_requests: int = 1024  # requests at one engine; further ones wait
    queue_size: int = 1024  # waiting requests for each model
    queue_timeout: float = 30.0
    request_timeout: float = 1800.0
    heartbeat_timeout: float = 15.0
    drain: float = 10.0
    token: str | None = None  # None: control calls are open
    workers: int = 1
    access_log: str | None = None  # a file, or "-" for standard output
    api_keys: ApiKeys | None = None  # those that clients need; None: none
    certificate: str | None = None  # a file; with `private_key`: TLS
    private_key: str | None = None
    otlp_endpoint: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def policies(self) -> tuple[str, ...]:
        """Those in use."""
        return (self.prefill_policy, self.decode_policy) if self.splitwise else (self.mixed_policy,)
