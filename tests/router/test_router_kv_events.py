"""Streams of what engines hold: opened, followed, given up, opened again."""

import json
import logging
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_mocks import MockEngine, Turn, engine, hold, until

from pdctl.router.engines import kv_events
from pdctl.router.engines.instance import Instance, Registration
from pdctl.router.engines.kv_events import KvEvents
from pdctl.router.engines.load import Load
from pdctl.router.engines.prefix_index import PrefixIndex, prefix_keys
from pdctl.router.messages import Head
from pdctl.router.settings import Limits
from pdctl.router.upstream.pool import Call

KEYS = prefix_keys(bytes(range(256)) * 8)


def line(*, reset: bool = False, stored: list[bytes] = [], removed: list[bytes] = [], **more: object) -> bytes:  # noqa: B006
    event = {"reset": reset, "stored": [k.hex() for k in stored], "removed": [k.hex() for k in removed]}
    return json.dumps(event | more).encode() + b"\n"


def instance_of(mock: MockEngine, *, publishes: bool = True) -> Instance:
    registration = Registration(role="prefill", host_ip="127.0.0.1", port=mock.port, kv_events=publishes)
    instance = Instance(registration, Limits(), Load())
    instance.live = True
    return instance


class Subscribed:
    """One engine's stream, whose first line has been taken."""

    def __init__(self, mock: MockEngine, token: str | None = None) -> None:
        self.mock = mock
        self.index = PrefixIndex()
        self.events = KvEvents(self.index, token)
        self.instance = instance_of(mock)

    def check(self, now: float) -> None:
        self.events.check(now, [self.instance])

    @property
    def matched(self) -> int:
        return self.index.matched(self.instance.key, KEYS)

    @property
    def stream(self) -> Call:
        return self.events._streams[self.instance.key]

    async def open(self, now: float, stored: list[bytes]) -> Turn:
        self.check(now)
        turn = await self.mock.turn()
        await turn.start_stream()
        await turn.chunk(line(reset=True, stored=stored, chunk_bytes=256))
        await self.holds(len(stored))
        return turn

    async def holds(self, count: int) -> None:
        await until(lambda: self.matched == count, f"{count} keys, now {self.matched}")


async def pass_on(turn: Turn) -> None:
    """Leave the answer to the test, and take the connection's next request."""


@pytest.fixture
async def mock() -> AsyncIterator[MockEngine]:
    async with engine(hold) as mock:
        yield mock


@pytest.fixture
async def subscribed(mock: MockEngine) -> AsyncIterator[Subscribed]:
    subscribed = Subscribed(mock)
    yield subscribed
    subscribed.events.close()
    subscribed.instance.pool.close()


async def test_the_index_follows_the_stream(subscribed: Subscribed):
    turn = await subscribed.open(0.0, KEYS[:2])
    assert (turn.method, turn.target) == ("GET", "/kv_events")
    await turn.chunk(line(stored=KEYS[2:6]))
    await subscribed.holds(6)
    await turn.chunk(line(removed=KEYS[4:5]) + line(stored=KEYS[4:5]) + line(removed=KEYS[5:6]))
    await subscribed.holds(5)
    await turn.chunk(line(reset=True, stored=KEYS[:1], chunk_bytes=256))
    await subscribed.holds(1)


async def test_the_stream_carries_the_token(mock: MockEngine):
    subscribed = Subscribed(mock, "secret")
    turn = await subscribed.open(0.0, [])
    assert turn.headers["authorization"] == "Bearer secret"
    subscribed.events.close()
    await turn.peer_left()


async def test_engines_that_do_not_publish_or_are_not_live_are_left_alone(mock: MockEngine):
    subscribed, other, dead = Subscribed(mock), instance_of(mock, publishes=False), instance_of(mock)
    dead.live = False
    for now in range(10):
        subscribed.events.check(float(now), [other, dead])
    await subscribed.open(10.0, KEYS)
    assert mock.connections == 1
    subscribed.events.close()


async def test_one_stream_is_enough(subscribed: Subscribed):
    turn = await subscribed.open(0.0, KEYS)
    for now in range(1, 15):
        subscribed.check(float(now))
    await turn.chunk(line(removed=KEYS[3:]))
    await subscribed.holds(3)
    assert subscribed.mock.connections == 1


async def test_a_stream_that_ends_is_forgotten_and_opened_again(subscribed: Subscribed):
    subscribed.mock.on_request = pass_on
    turn = await subscribed.open(0.0, KEYS)
    await turn.end_stream()
    await subscribed.holds(0)
    subscribed.index.assigned(subscribed.instance.key, KEYS[:4])
    assert subscribed.matched == 4  # known by what it is assigned
    ended = subscribed.stream
    subscribed.check(4.9)
    assert subscribed.stream is ended
    await subscribed.open(5.0, KEYS[:7])


async def test_a_dropped_connection_is_forgotten_and_opened_again(subscribed: Subscribed):
    turn = await subscribed.open(100.0, KEYS)
    turn.drop()
    await subscribed.holds(0)
    await subscribed.open(160.0, KEYS[:5])


async def test_a_silent_stream_is_given_up(subscribed: Subscribed):
    turn = await subscribed.open(0.0, KEYS)
    for now in (1.0, 10.0, 16.0):
        subscribed.check(now)
    assert subscribed.matched == len(KEYS)
    await turn.chunk(line(removed=KEYS[5:]))
    await subscribed.holds(5)
    subscribed.check(17.0)
    await turn.chunk(b'{"reset"')  # half a line is none
    subscribed.check(32.0)
    assert subscribed.matched == 5
    subscribed.check(32.1)
    assert subscribed.matched == 0
    await turn.peer_left()
    await subscribed.open(38.0, KEYS[:2])


async def test_an_engine_that_is_taken_out_or_replaced_is_forgotten_and_left(subscribed: Subscribed):
    turn = await subscribed.open(0.0, KEYS)
    subscribed.instance.live = False
    subscribed.check(1.0)
    assert subscribed.matched == 0
    await turn.peer_left()
    subscribed.instance.live = True
    turn = await subscribed.open(2.0, KEYS)
    subscribed.instance = instance_of(subscribed.mock)
    await subscribed.open(3.0, KEYS[:3])
    await turn.peer_left()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"{}\n", "a line cannot be read: Object missing required field `reset`"),
        (b"\n", "a line cannot be read"),
        (line(stored=KEYS), "its first line is no reset"),
        (line(reset=True, chunk_bytes=64), "its keys are of 64 bytes each, the router's of 256"),
        (b'{"reset": true, "stored": ["0123456789abcde"], "removed": []}\n', "its keys are not hexadecimal"),
        (b'{"reset": true, "stored": ["0123"], "removed": []}\n', "its keys are not 8 bytes long"),
    ],
)
async def test_a_stream_that_cannot_be_understood_is_given_up(
    subscribed: Subscribed, answer: bytes, reason: str, caplog: pytest.LogCaptureFixture
):
    subscribed.check(0.0)
    turn = await subscribed.mock.turn()
    await turn.start_stream()
    await turn.chunk(answer)
    await turn.peer_left()
    assert f"prefill instance {subscribed.mock.url}: /kv_events: {reason}" in caplog.text
    assert subscribed.matched == 0


async def test_a_line_without_end_is_given_up(subscribed: Subscribed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_events, "MAX_LINE", 1000)
    turn = await subscribed.open(0.0, KEYS)
    await turn.chunk(b"[" * 1001)
    await subscribed.holds(0)
    await turn.peer_left()


async def test_an_engine_that_refuses_is_asked_again_and_logged_once(
    subscribed: Subscribed, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    subscribed.mock.on_request = pass_on
    for attempt in range(3):
        subscribed.check(attempt * 5.0)
        await (await subscribed.mock.turn()).answer({}, 404)
        await until(lambda: subscribed.stream.over, "the answer")
    assert caplog.text.count("it answers 404") == 1


async def test_an_engine_that_cannot_be_reached_is_asked_again(subscribed: Subscribed):
    await subscribed.mock.stop()
    subscribed.check(0.0)
    await until(lambda: subscribed.stream.over, "a refused connection")
    await subscribed.mock.start()
    await subscribed.open(5.0, KEYS)


@given(st.lists(st.integers(0, 1000), max_size=12))
async def test_lines_may_be_cut_anywhere(cuts: list[int]):
    index = PrefixIndex()
    instance = Instance(Registration(role="prefill", host_ip="127.0.0.1", port=1), Limits(), Load())
    stream = kv_events._Stream(instance, b"", index, 0.0)
    data = line(reset=True, stored=KEYS[:3]) + line(stored=KEYS[3:]) + line(removed=KEYS[6:7]) + b'{"reset":'
    ends = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
    stream.received(Head(200, b"", None, False, False, True), b"", False)
    for start, end in pairwise(ends):
        stream.received(None, data[start:end], False)
    assert index.matched(instance.key, KEYS) == 6
    assert not stream.over
