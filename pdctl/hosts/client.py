"""A connection to an agent, whatever carries its bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from pdctl.agent.protocol import VERSION, Message, ProtocolError, encode, read_message
from pdctl.errors import ExitCode, PdctlError

CALL_TIMEOUT_S = 30.0
_MAX_EVENTS = 4  # waiting to be taken, each of at most the agent's own bound; beyond them, that bound applies


class AgentGoneError(PdctlError):
    """No agent answers."""

    exit_code = ExitCode.PROCESS_DIED


class AgentCallError(PdctlError):
    """The agent refused, or failed at, what it was asked for."""


class AgentClient:
    """Calls an agent's methods and takes its events.

    On a connection that is subscribed the events must be taken, or replies wait behind them: use one for each purpose.
    """

    def __init__(
        self,
        host: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.folder = ""  # the agent's, as a path there
        self._host = host
        self._reader = reader
        self._writer = writer
        self._on_close = on_close  # ends what carries the bytes
        self._end = "has ended"
        self._ids = count(1)
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._events: asyncio.Queue[Message | None] = asyncio.Queue(_MAX_EVENTS)
        self._receiver = asyncio.create_task(self._receive())

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._receiver.done()

    async def greet(self, timeout_s: float) -> None:
        """Raise AgentCallError, and close the connection, unless the agent speaks our version of the protocol."""
        try:
            hello = await self.call("hello", timeout_s=timeout_s)
            version, self.folder = hello["version"], str(hello.get("folder", ""))
            if version != VERSION:
                raise AgentCallError(
                    f"host {self._host}: its agent speaks version {version} of the protocol, this pdctl {VERSION}: use"
                    " the pdctl that started the deployment, or end it with `pdctl down`"
                )
        except BaseException:
            await self.close()
            raise

    async def call(self, method: str, /, *, timeout_s: float = CALL_TIMEOUT_S, **params: object) -> Any:  # noqa: ANN401
        """Call a method; raises AgentCallError when it fails and AgentGoneError when the agent does not answer."""
        if self._receiver.done():
            raise self._gone()
        request_id = next(self._ids)
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[request_id] = reply
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(encode({"id": request_id, "method": method, "params": params}))
                await self._writer.drain()
                answer = await reply
        except ConnectionError:
            raise self._gone() from None
        except TimeoutError:
            raise AgentGoneError(
                f"the agent on host {self._host} did not answer {method!r} in {timeout_s:g} s"
            ) from None
        finally:
            del self._replies[request_id]
            if reply.done() and not reply.cancelled():
                reply.exception()  # it may not have come so far as to wait for it
        if "error" in answer:
            raise AgentCallError(f"host {self._host}: {answer['error']['message']}")
        return answer["result"]

    async def next_event(self) -> Message:
        """The next event after ``subscribe``; raises AgentGoneError when the connection ends."""
        event = await self._events.get()
        if event is None:
            raise self._gone()
        return event

    async def close(self) -> None:
        """Close the connection; the agent goes on."""
        self._receiver.cancel()
        self._writer.close()
        await asyncio.wait({self._receiver})
        if self._on_close is not None:
            await self._on_close()

    async def _receive(self) -> None:
        try:
            while (message := await read_message(self._reader)) is not None:
                if "event" in message:
                    await self._events.put(message)
                elif (reply := self._replies.get(message.get("id", 0))) is not None and not reply.done():
                    reply.set_result(message)
        except ProtocolError as error:
            self._end = f"sent what is no message: {error}"
        finally:
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(self._gone())
            self._writer.close()
        await self._events.put(None)

    def _gone(self) -> AgentGoneError:
        return AgentGoneError(f"the agent on host {self._host} {self._end}")
