"""HTTP to processes of other hosts, sent by their agents: a launcher need not reach the processes' addresses."""

from collections.abc import Awaitable, Callable

import httpx

from pdctl.errors import HostUnreachableError
from pdctl.hosts.client import AgentCallError, AgentClient, AgentGoneError

TIMEOUT_S = 300.0  # of a request that has no limit of its own: what waits for it has one
MARGIN_S = 5.0  # for the way to the agent
# What belongs to the agent's own connection to the process.
_HOP_BY_HOP = ("connection", "content-encoding", "content-length", "transfer-encoding", "host", "accept-encoding")


class AgentTransport(httpx.AsyncBaseTransport):
    """Sends requests through the agent that ``client`` gives."""

    def __init__(self, client: Callable[[], Awaitable[AgentClient]]) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx; raises httpx.ConnectError where the agent, or the process, does not answer."""
        timeout = request.extensions.get("timeout", {}).get("read") or TIMEOUT_S
        body = (await request.aread()).decode()
        headers = {key: value for key, value in request.headers.items() if key not in _HOP_BY_HOP}
        try:
            client = await self._client()
            answer = await client.call(
                "fetch",
                method=request.method,
                url=str(request.url),
                headers=headers,
                body=body,
                timeout=timeout,
                timeout_s=timeout + MARGIN_S,
            )
        except (AgentGoneError, AgentCallError, HostUnreachableError) as error:
            raise httpx.ConnectError(str(error), request=request) from error
        kept = {key: value for key, value in answer["headers"].items() if key.lower() not in _HOP_BY_HOP}
        return httpx.Response(answer["status"], headers=kept, text=answer["body"], request=request)
