"""One client of the agent."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, Optional

from pdctl.agent.paths import AgentError
from pdctl.agent.protocol import Message, ProtocolError, encode, read_message
from pdctl.agent.subscriber import Subscriber
from pdctl.agent.supervisor import Supervisor

_MAX_IN_FLIGHT = 64  # requests of one connection

log = logging.getLogger(__name__)


class Connection:
    """One client: its requests run side by side, each reply carries the request's id."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        methods: Dict[str, Callable[..., Awaitable[Any]]],
        supervisor: Supervisor,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._methods = methods
        self._supervisor = supervisor
        self._spawn = spawn  # requests outlive the connection: a `stop` goes on when its client dies
        self._in_flight = 0
        self._subscription: Optional[asyncio.Task[None]] = None

    async def run(self) -> None:
        """Serve until the client closes the connection or breaks the protocol."""
        try:
            while True:
                request = await read_message(self._reader)
                if request is None:
                    return
                self._in_flight += 1
                self._spawn(self._answer(request))
        except ProtocolError as error:
            log.warning("closing a connection: %s", error)
        finally:
            if self._subscription is not None:
                self._subscription.cancel()
            self._writer.close()

    async def _answer(self, request: Message) -> None:
        try:
            reply = await self._result(request)
            await self._send({"id": request.get("id"), **reply})
        except (ConnectionError, RuntimeError):
            log.info("a client left before its answer to %s", request.get("method"))
        finally:
            self._in_flight -= 1

    async def _result(self, request: Message) -> Message:
        name, params = request.get("method"), request.get("params") or {}
        try:
            if self._in_flight > _MAX_IN_FLIGHT:
                raise AgentError(f"more than {_MAX_IN_FLIGHT} requests at once on one connection")
            if name == "subscribe":
                return {"result": self._subscribe(**params)}
            if name not in self._methods:
                raise AgentError(f"no method {name!r}")
            return {"result": await self._methods[name](**params)}
        except (AgentError, OSError) as error:
            return {"error": {"kind": "failed", "message": str(error)}}
        except Exception as error:
            log.exception("%s failed", name)
            return {"error": {"kind": "internal", "message": f"{type(error).__name__}: {error}"}}

    def _subscribe(self, logs: bool = True, names: Optional[List[str]] = None) -> List[Dict[str, Any]]:
        """From the reply on, which tells every process's state, no change is missed."""
        if self._subscription is not None:
            raise AgentError("this connection is subscribed already")
        subscriber = Subscriber(self._send, logs, set(names) if names else None)
        self._supervisor.subscribers.add(subscriber)
        self._subscription = asyncio.get_running_loop().create_task(self._pass_on(subscriber))
        return self._supervisor.snapshots()

    async def _pass_on(self, subscriber: Subscriber) -> None:
        try:
            await subscriber.run()
        except ConnectionError:
            log.info("a subscriber left")
        finally:
            self._supervisor.subscribers.discard(subscriber)

    async def _send(self, message: Message) -> None:
        self._writer.write(encode(message))
        await self._writer.drain()
