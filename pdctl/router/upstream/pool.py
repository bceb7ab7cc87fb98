"""The engines' side: kept-alive connections to one engine, one call at a time on each."""

import asyncio
from collections import deque
from math import inf

from pdctl.router.messages import Failure, Head
from pdctl.router.settings import Limits
from pdctl.router.upstream.connection import EngineConnection


class Pool:
    """One engine's connections. Idle ones are bounded in number and age, the last used is used first."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        self.host = host
        self.port = port
        self.limits = limits
        self.stale_retries = 0
        self.retired = False  # no connection is kept any more
        self.open: set[EngineConnection] = set()
        self._idle: deque[EngineConnection] = deque()
        self.now = asyncio.get_running_loop().time
        self._host = address(host, port).encode()

    def request(self, method: bytes, target: bytes, headers: bytes, body: bytes) -> bytes:
        """A whole request; `headers` are whole lines."""
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            method,
            target,
            self._host,
            headers,
            len(body),
            body,
        )

    def send(self, call: "Call") -> None:
        """Send a whole request."""
        connection = self._take_idle()
        if connection is None:
            call.connect()
        else:
            connection.begin(call)

    @property
    def idle(self) -> int:
        """How many connections wait for a call."""
        return len(self._idle)

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection for the next call, if there is room."""
        if self.retired or len(self._idle) >= self.limits.engine_idle:
            connection.drop()
            return
        connection.idle_since = self.now()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """Called once by each connection that is gone."""
        self.open.discard(connection)
        if connection.idle_since < inf:
            self._idle.remove(connection)

    def check(self, now: float) -> None:
        """Close connections that have been idle for too long. Called once a tick."""
        while self._idle and now - self._idle[0].idle_since > self.limits.engine_idle_timeout:
            self._discard(self._idle.popleft())

    def retire(self) -> None:
        """Close idle connections, and the others when their calls end."""
        self.retired = True
        while self._idle:
            self._discard(self._idle.pop())

    def close(self) -> None:
        """Close every connection, whatever is under way."""
        self.retire()
        for connection in tuple(self.open):
            connection.drop()

    def _take_idle(self) -> EngineConnection | None:
        while self._idle:
            connection = self._idle.pop()
            connection.idle_since = inf
            if connection.usable:
                return connection
        return None

    @staticmethod
    def _discard(connection: EngineConnection) -> None:
        connection.idle_since = inf
        connection.drop()


class Call:
    """One request to an engine, and its answer. Subclasses say what becomes of it.

    Nothing is reported after the end, a failure, or a cancellation, and nothing before `Pool.send` has returned.
    """

    __slots__ = ("_connection", "_fresh", "_pool", "_sent", "_task", "over", "payload")

    def __init__(self, pool: Pool, payload: bytes) -> None:
        self.payload = payload
        self.over = False  # its answer is complete, has failed, or is not wanted any more
        self._pool = pool
        self._connection: EngineConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._fresh = False  # the connection was opened for this call
        self._sent = 0.0

    # For subclasses.

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        """One read's worth of the answer: its head if it came with it, a piece of the body as framed, the end."""
        raise NotImplementedError

    def failed(self, failure: Failure) -> None:
        """There will be no (further) answer."""
        raise NotImplementedError

    # For the request that it belongs to.

    def cancel(self) -> None:
        """Close the connection: the engine sees that nobody waits."""
        self.over = True
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        elif self._task is not None:  # not if it has just connected: uvloop would not tell of the connection's end
            self._task.cancel()

    @property
    def connected(self) -> bool:
        """Whether it is on a connection."""
        return self._connection is not None

    def pause(self) -> None:
        """Read no more of the answer until `resume`."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    # For the pool and the connection.

    def connect(self) -> None:
        """Open a connection for this call."""
        self._fresh = True
        self._task = asyncio.get_running_loop().create_task(self._connect())

    def bind(self, connection: EngineConnection) -> None:
        """Take a connection that is open now."""
        self._connection = connection
        self._sent = self._pool.now()

    def finished(self, head: Head | None, body: bytes) -> None:
        """The last read of the answer."""
        self._connection = None
        self.over = True
        self.received(head, body, True)

    def lost(self, failure: Failure, *, answered: bool) -> None:
        """The connection ended before the answer did; one that had gone stale while idle is replaced once."""
        self._connection = None
        if self.over:
            return
        stale = not (self._fresh or answered) and self._pool.now() - self._sent < self._pool.limits.stale
        if failure.kind != "dropped" or not stale:
            self._fail(failure)
            return
        self._pool.stale_retries += 1
        self.connect()

    async def _connect(self) -> None:
        pool = self._pool
        limit = pool.limits.connect_timeout
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().create_connection(
                    lambda: EngineConnection(pool, self), pool.host, pool.port
                )
        except TimeoutError:
            self._fail(Failure("connect", f"no connection within {limit:g} s"))
        except OSError as error:
            self._fail(Failure("connect", error.strerror or str(error)))
        finally:
            self._task = None

    def _fail(self, failure: Failure) -> None:
        if not self.over:
            self.over = True
            self.failed(failure)


def address(host: str, port: int) -> str:
    """`host:port`, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
