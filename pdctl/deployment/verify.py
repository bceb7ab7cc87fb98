"""One real request through every prefill x decode pair: only then is a deployment ready."""

import asyncio
from collections.abc import Iterator
from itertools import cycle, islice
from time import monotonic
from typing import Any, NamedTuple

import httpx

from pdctl.deployment.engine_keys import HOW_TO_GIVE
from pdctl.errors import VerifyError
from pdctl.profiles import WarmUp

CONCURRENCY = 8
RETRY_PAUSE_S = 1.0
PREFILL_URL, DECODE_URL, TOKEN = "X-Router-Prefill-URL", "X-Router-Decode-URL", "X-Pdctl-Token"
_WORDS = ("Hello", "there", "again", "my", "friend")
_UNKNOWN = ("unknown_instance", "no_instance")  # what pdctl's router calls it that a worker does not know an engine yet
_BODY_CHARACTERS = 300  # of a refusal, in the error


class Engine(NamedTuple):
    """An engine as the router knows it."""

    name: str  # in the plan
    url: str
    model: str
    key: str = ""  # that it wants of its clients


class Pair(NamedTuple):
    """What one request goes through."""

    prefill: Engine | None  # None: decode does both
    decode: Engine

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of its engines."""
        return (self.prefill.name, self.decode.name) if self.prefill else (self.decode.name,)

    @property
    def key(self) -> str:
        """The engines' API key: a request carries one."""
        return self.decode.key or (self.prefill.key if self.prefill else "")

    def __str__(self) -> str:
        return " x ".join(self.processes)


def pairs(engines: dict[str, list[Engine]]) -> Iterator[Pair]:
    """Every prefill x decode pair, and every mixed engine. ``engines``: by role."""
    for decode in engines["decode"]:
        for prefill in engines["prefill"]:
            yield Pair(prefill, decode)
    for mixed in engines["mixed"]:
        yield Pair(None, mixed)


class _AnswerError(VerifyError):
    """The answer is an error, or has nothing in it."""

    def __init__(self, message: str, status: int, code: object) -> None:
        super().__init__(message)
        self.is_final = 400 <= status < 500  # the same request would be refused again
        self.code = code  # pdctl's router's


async def verify(
    client: httpx.AsyncClient,
    endpoint: str,
    token: str | None,
    all_pairs: list[Pair],
    warm_up: WarmUp,
    *,
    early_s: float = 0.0,
) -> None:
    """Send a request through each pair; raises VerifyError for the first that does not get through.

    ``token``: with which pdctl's router takes a request to a pair of choice; None: it is another, which chooses itself.
    ``early_s``: for how long the router may not know all engines yet.
    """
    turn = asyncio.Semaphore(CONCURRENCY)

    async def one(pair: Pair) -> None:
        async with turn:
            try:
                await _verify_in_time(client, endpoint, token, pair, warm_up, early_s)
            except VerifyError as error:
                error.processes = pair.processes
                raise

    tasks = [asyncio.create_task(one(pair)) for pair in all_pairs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def prompt_of(words: int) -> str:
    """Return a prompt of so many words."""
    return " ".join(islice(cycle(_WORDS), words))


async def _verify_in_time(
    client: httpx.AsyncClient, endpoint: str, token: str | None, pair: Pair, warm_up: WarmUp, early_s: float
) -> None:
    """Some engines give up on the first transfer of a pair, which connects it, sooner than it takes."""
    began = monotonic()
    while True:
        try:
            return await _verify_pair(client, endpoint, token, pair, warm_up)
        except _AnswerError as error:
            is_early = error.code in _UNKNOWN if token is not None else not error.is_final
            retry_s = max(early_s if is_early else 0.0, 0.0 if error.is_final else warm_up.retry_s)
            if monotonic() - began >= retry_s:
                raise
        except VerifyError:
            if monotonic() - began >= warm_up.retry_s:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)


async def _verify_pair(
    client: httpx.AsyncClient, endpoint: str, token: str | None, pair: Pair, warm_up: WarmUp
) -> None:
    pins = _pins(pair, token) if token is not None else {}
    headers = pins | ({"Authorization": f"Bearer {pair.key}"} if pair.key else {})
    prompt = prompt_of(warm_up.prompt_words)
    body = {"model": pair.decode.model, "prompt": prompt, "max_tokens": 2, "temperature": 0}
    try:
        async with asyncio.timeout(warm_up.timeout_s):
            answer = await client.post(f"{endpoint}/v1/completions", json=body, headers=headers, timeout=None)
    except TimeoutError:
        raise VerifyError(f"a request through {pair} got no answer in {warm_up.timeout_s:g} s") from None
    except httpx.HTTPError as error:
        raise VerifyError(f"a request through {pair} failed: {type(error).__name__}: {error}") from error
    _check(answer, pair, pins)


def _pins(pair: Pair, token: str) -> dict[str, str]:
    prefill = {} if pair.prefill is None else {PREFILL_URL: pair.prefill.url}
    return {DECODE_URL: pair.decode.url, TOKEN: token, **prefill}


def _check(answer: httpx.Response, pair: Pair, pins: dict[str, str]) -> None:
    if answer.status_code != httpx.codes.OK:
        text = " ".join(answer.text.split())[:_BODY_CHARACTERS]
        hint = _key_hint(pair) if answer.status_code == httpx.codes.UNAUTHORIZED else ""
        message = f"a request through {pair} was answered with {answer.status_code}: {text}{hint}"
        raise _AnswerError(message, answer.status_code, _code(answer))
    for header in (PREFILL_URL, DECODE_URL):
        if header in pins and answer.headers.get(header) != pins[header]:
            raise VerifyError(f"a request meant for {pair} went elsewhere: {header} is {answer.headers.get(header)}")
    if not _has_text(answer):
        message = f"a request through {pair} was answered without a choice: {answer.text[:_BODY_CHARACTERS]}"
        raise _AnswerError(message, answer.status_code, None)


def _key_hint(pair: Pair) -> str:
    if pair.key:
        return "; it carried the engine's API key: does each engine want the same, and does the router pass it on?"
    return f"; if its engine wants an API key, say which by {HOW_TO_GIVE}"


def _code(answer: httpx.Response) -> object:
    try:
        return answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def _has_text(answer: httpx.Response) -> bool:
    try:
        content: Any = answer.json()
    except ValueError:
        return False
    return isinstance(content, dict) and bool(content.get("choices"))
