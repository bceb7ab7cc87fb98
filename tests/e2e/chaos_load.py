"""A steady load whose every answer is known."""

import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from tests.e2e.chaos_deployment import LIMIT_S, until
from tests.e2e.e2e_prompts import LICENSE

SIZES = [60, 500, 200, 650, 30, 350, 120, 700]  # of the prompts, in characters
BEGUN = 3  # pieces after which a stream is in its middle


class Request(NamedTuple):
    """A request of the load."""

    path: str
    body: dict[str, Any]


class Answer(NamedTuple):
    """What has to be the same whatever happens to the engines."""

    text: str
    finish_reason: str
    completion_tokens: int


class Known(NamedTuple):
    """A request and its answer."""

    request: Request
    answer: Answer


@dataclass
class Load:
    """What its clients see."""

    url: str
    answered: dict[int, int]  # by client
    failures: list[str] = field(default_factory=list)
    streaming: dict[int, str] = field(default_factory=dict)  # by client: where a stream in its middle began
    ending: threading.Event = field(default_factory=threading.Event)

    def turn_over(self) -> None:
        """Wait until every request that is under way has been answered."""
        before = dict(self.answered)
        until(lambda: self._all_answered_since(before) or bool(self.failures), "the end of what is under way")
        assert not self.failures, self.failures

    def stream_at(self, url: str) -> None:
        """Wait until a stream of this decode engine is in its middle."""
        until(lambda: url in self.streaming.values() or bool(self.failures), f"a stream of {url}")
        assert not self.failures, self.failures

    def _all_answered_since(self, before: dict[int, int]) -> bool:
        return all(self.answered[client] > count for client, count in before.items())


def mixed_requests() -> list[Request]:
    """Prompts of several lengths; most are streams; some are sampled; no two are equal."""
    text = LICENSE.read_text()
    made = []
    for index, size in enumerate(SIZES):
        prompt = text[1000 * index :][:size]
        sampling = {"temperature": 0.8, "seed": index} if index % 4 == 3 else {"temperature": 0}
        body = {"max_tokens": 16 + 6 * (index % 4), "ignore_eos": True} | sampling
        if index % 3:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if index % 2:
            made.append(Request("/v1/completions", body | {"prompt": prompt}))
        else:
            made.append(Request("/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}))
    return made


def wide_requests() -> list[Request]:
    """Of eight choices each: two such requests nearly fill an engine's pool, three do not fit."""
    text = LICENSE.read_text()
    body = {"n": 8, "max_tokens": 48, "ignore_eos": True, "temperature": 0.8}
    return [Request("/v1/completions", body | {"prompt": text[at:][:500], "seed": at}) for at in (9000, 9500)]


def learn(url: str, requests: list[Request]) -> list[Known]:
    """Find out how these are answered while nothing else happens."""
    with httpx.Client(base_url=url, timeout=LIMIT_S, verify=False) as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda request: ask(http, request), requests))
    assert len(set(answers)) == len(answers)
    return [Known(request, answer) for request, answer in zip(requests, answers, strict=True)]


@contextmanager
def steady_load(url: str, known: list[Known], clients: int, pause_s: float = 0.0) -> Iterator[Load]:
    """Have so many clients ask one thing after the other inside the block; in the end none may have failed."""
    load, turns = Load(url, dict.fromkeys(range(clients), 0)), itertools.cycle(known)
    orders = [(load, number, turns, pause_s) for number in range(clients)]
    threads = [threading.Thread(target=_client, args=order, daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.ending.set()
        for thread in threads:
            thread.join(LIMIT_S)
    assert not load.failures, load.failures
    assert not any(thread.is_alive() for thread in threads)


def _client(load: Load, number: int, turns: Iterator[Known], pause_s: float) -> None:
    with httpx.Client(base_url=load.url, timeout=LIMIT_S, verify=False) as http:
        while not load.ending.wait(pause_s):
            request, known = next(turns)
            try:
                answer = ask(http, request, load, number)
            except Exception as error:  # whatever it is, it is what the client gets
                load.failures.append(f"{request}: {error!r}")
                continue
            if answer != known:
                load.failures.append(f"{request}: {answer} instead of {known}")
            load.answered[number] += 1


def ask(http: httpx.Client, request: Request, load: Load | None = None, number: int = 0) -> Answer:
    """Send a request and return its whole answer."""
    with http.stream("POST", request.path, json=request.body) as response:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {response.read().decode()}")
        if not request.body.get("stream"):
            response.read()
            return _joined([response.json()])
        return _joined(_events(response, load, number))


def _events(response: httpx.Response, load: Load | None, number: int) -> Iterator[dict[str, Any]]:
    last = ""
    try:
        for count, line in enumerate(line for line in response.iter_lines() if line):
            if load is not None and count == BEGUN:
                load.streaming[number] = response.headers["x-router-decode-url"]
            last = line
            if line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))
    finally:
        if load is not None:
            load.streaming.pop(number, None)
    assert last == "data: [DONE]", f"the stream ended with {last}"


def _joined(pieces: Iterable[dict[str, Any]]) -> Answer:
    text, reason, tokens = "", "", 0
    for piece in pieces:
        for choice in piece["choices"]:
            message = choice.get("message") or choice.get("delta") or {}
            text += choice.get("text") or message.get("content") or ""
            reason = choice.get("finish_reason") or reason
        tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
    return Answer(text, reason, tokens)
