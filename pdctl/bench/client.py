"""The HTTP side of a benchmark: one streamed request to an OpenAI-compatible server."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

import aiohttp
import msgspec

from pdctl.bench.answer import Answer, AnswerReader
from pdctl.bench.dataset import Prompt
from pdctl.errors import ExitCode, PdctlError

Endpoint = Literal["chat", "completions"]
PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

CONNECT_TIMEOUT_S = 30.0
# Below the keep-alive of common servers (uvicorn: 5 s), so that no request meets a connection that is being closed.
KEEPALIVE_S = 4.0
_JSON = {"Content-Type": "application/json"}


class BenchError(PdctlError):
    """The benchmark cannot run against this server."""

    exit_code = ExitCode.BENCH_ERRORS


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """Return a session without a limit on connections, whose requests may take ``timeout_s`` each."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        read_bufsize=2**18,
    )


def base_url(url: str) -> str:
    """Return ``url`` without the ``/v1`` or slash that users add to it."""
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def request_body(
    prompt: Prompt, model: str, endpoint: Endpoint, *, ignore_eos: bool = True, continuous_usage: bool = False
) -> bytes:
    """Return the JSON body of a streamed, greedy request for exactly (without ``ignore_eos``: at most) the tokens."""
    text: dict[str, Any] = {"prompt": prompt.text}
    if endpoint == "chat":
        text = {"messages": [{"role": "user", "content": prompt.text}]}
    body = {"model": model, **text, "max_tokens": prompt.output_tokens, "temperature": 0.0, "stream": True}
    stream_options = {"include_usage": True}
    if ignore_eos:
        body["ignore_eos"] = True
    if continuous_usage:
        stream_options["continuous_usage_stats"] = True
    return msgspec.json.encode({**body, "stream_options": stream_options})


async def stream_answer(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    clock: Callable[[], float] = perf_counter,
    keep_text: bool = False,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Answer:
    """Post ``body`` and read the answer to its end, timed by ``clock``; whatever fails is in the answer."""
    reader = AnswerReader(keep_text=keep_text, on_tokens=on_tokens)
    answer = reader.answer
    try:
        async with session.post(url, data=body, headers=_JSON) as response:
            if response.status != 200:
                answer.fail(f"http {response.status}", (await response.text(errors="replace"))[:500])
                return answer
            async for data in response.content.iter_any():
                reader.feed(data, clock())
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        answer.fail("connect", str(error))
    except TimeoutError:
        answer.fail("timeout", f"no complete answer within {session.timeout.total:g} s")
    except (aiohttp.ClientError, ConnectionError) as error:
        answer.fail("disconnected", f"{type(error).__name__}: {error}")
    if not answer.finished:
        answer.fail("truncated", "the stream ended without a finish reason")
    elif answer.first is None:
        answer.fail("empty", "the answer has no token")
    return answer


async def served_model(session: aiohttp.ClientSession, url: str) -> str:
    """Return the id of the first model that the server lists."""
    where = f"{url}/v1/models"
    try:
        async with session.get(where) as response:
            text = await response.text(errors="replace")
            if response.status != 200:
                raise BenchError(
                    f"{where} answered {response.status}: {text[:200]}; is it an OpenAI-compatible server?"
                )
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(f"no answer from {where}: {str(error) or type(error).__name__}; is the server up?") from error
    try:
        return msgspec.json.decode(text, type=_Models).data[0].id
    except (msgspec.DecodeError, IndexError) as error:
        raise BenchError(f"{where} lists no model: {text[:200]}; name one with --model") from error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
