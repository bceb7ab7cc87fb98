"""What the supervisor passes on and remembers, and how it gets rid of workers that do not read or do not answer."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_mocks import LIMIT, until

from pdctl.errors import PdctlError
from pdctl.router.access.api_keys import ApiKey, ApiKeys
from pdctl.router.engines.instance import Registration
from pdctl.router.figures.metrics import Metrics
from pdctl.router.settings import FixedInstance, Settings
from pdctl.router.workers import bus as bus_module
from pdctl.router.workers import switchboard as switchboard_module
from pdctl.router.workers.bus import (
    Aborted,
    Begin,
    Bus,
    CaughtUp,
    Drained,
    Joined,
    Message,
    Registered,
    Removed,
    Stop,
    Wire,
    decode,
    encode,
)
from pdctl.router.workers.switchboard import Switchboard


def registered(port: int, *, news: bool = True) -> Registered:
    return Registered(Registration(role="mixed", host_ip="127.0.0.1", port=port), "", news)


@dataclass
class Desk:
    """A worker as the switchboard sees it, and what it is told."""

    number: int
    joined: bool = False
    told: list[Message] = field(default_factory=list)

    def tell(self, message: bytes) -> None:
        self.told.append(decode(message))


class Router:
    """A switchboard with workers that take everything and answer nothing."""

    def __init__(self, workers: int = 2, timeout: float = 15.0, fixed: tuple[str, ...] = ()) -> None:
        self.board = Switchboard(timeout, fixed)
        self.desks = [Desk(number) for number in range(workers)]

    def says(self, number: int, message: Message) -> None:
        self.board.take(self.desks[number], message, encode(message), self.desks)

    def joins(self) -> list[Message]:
        """What a new worker is told at first."""
        desk = Desk(99)
        self.board.take(desk, Joined(), b"", self.desks)
        assert desk.told[-1] == CaughtUp()
        return desk.told[:-1]


async def test_what_one_tells_reaches_the_others_that_have_joined():
    router = Router(3)
    router.says(0, Joined())
    router.says(1, Joined())
    for message in (registered(1), Drained("127.0.0.1:1", True), Aborted([]), Removed("127.0.0.1:1")):
        router.says(0, message)
        assert router.desks[1].told[-1] == message
        assert message not in router.desks[0].told
    assert router.desks[2].told == []


async def test_a_new_worker_is_told_what_still_holds():
    router = Router(fixed=("127.0.0.1:9",))
    for message in (
        registered(1),
        registered(2),
        registered(3),
        Drained("127.0.0.1:1", True),
        Drained("127.0.0.1:2", True),
        Drained("127.0.0.1:2", False),
        Removed("127.0.0.1:3"),
        Drained("127.0.0.1:9", True),
    ):
        router.says(0, message)
    assert router.joins() == [
        registered(1),
        Drained("127.0.0.1:1", True),
        registered(2),
        Removed("127.0.0.1:3"),
        Drained("127.0.0.1:9", True),
    ]


async def test_engines_without_heartbeats_are_forgotten_but_not_fixed_ones():
    router = Router(timeout=0.0, fixed=("127.0.0.1:9",))
    for message in (registered(1), Removed("127.0.0.1:2"), Removed("127.0.0.1:9")):
        router.says(0, message)
    await asyncio.sleep(0.001)
    assert router.joins() == [Removed("127.0.0.1:9")]


async def test_an_engine_that_was_forgotten_is_not_drained_when_it_comes_back():
    router = Router(timeout=0.01)
    for message in (registered(1), Drained("127.0.0.1:1", True)):
        router.says(0, message)
    await asyncio.sleep(0.02)
    router.says(0, registered(1))
    assert router.joins() == [registered(1)]


@asynccontextmanager
async def buses(count: int) -> AsyncIterator[tuple[Router, list[Bus]]]:
    """A switchboard with workers on real wires."""
    router, wires = Router(count), list[Wire]()
    loop, joined = asyncio.get_running_loop(), list[Bus]()
    for number, desk in enumerate(router.desks):
        ours, theirs = socket.socketpair()

        def take(data: bytes, number: int = number) -> None:
            router.says(number, decode(data))

        wire = Wire(take, lambda _: None)
        await loop.create_connection(lambda wire=wire: wire, sock=ours)
        wire.send(encode(Begin(Settings(), debug=False)))
        desk.tell = wire.send  # type: ignore[method-assign]
        bus = Bus(number)
        await bus.connect(theirs, lambda _: None)
        await bus.join()
        wires.append(wire)
        joined.append(bus)
    try:
        yield router, joined
    finally:
        for wire in wires:
            wire.close()


async def test_when_it_has_settled_all_others_have_taken_what_was_published():
    async with buses(3) as (_, (one, *others)):
        taken: list[Message] = []
        for other in others:
            other.receive = taken.append
        one.publish(registered(1))
        await one.settle()
        assert taken == [registered(1)] * 2


async def test_figures_of_the_others_and_of_those_that_are_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(switchboard_module, "_PATIENCE", 0.05)
    async with buses(3) as (router, (one, second, third)):
        for bus in (one, second, third):
            metrics = Metrics()
            metrics.retries.value += 10**bus.worker
            bus.figures = lambda metrics=metrics: metrics.snapshot([])

        async def retries() -> tuple[int, float]:
            answers = await one.collect()
            page = Metrics().render([], answers.figures, answers.last_known).decode()
            [line] = [line for line in page.splitlines() if line.startswith("pdctl_router_retries_total ")]
            return answers.answered, float(line.split()[1]) + 1

        assert await retries() == (2, 111)
        silent = router.desks[2].tell
        router.desks[2].tell = lambda _: None  # type: ignore[method-assign]
        assert await retries() == (1, 111), "what it told last"
        router.desks[2].tell = silent  # type: ignore[method-assign]
        router.board.died(router.desks[2])
        assert await retries() == (1, 111), "what it told last, in its lifetime"
        router.board.died(router.desks[1])
        assert await retries() == (0, 111)


async def test_a_router_of_one_process_asks_nobody():
    bus = Bus()
    await bus.settle()
    assert (await bus.collect()).answered == 0


async def test_a_worker_sees_the_end_of_its_supervisor():
    ours, theirs = socket.socketpair()
    bus, stops = Bus(), list[bool]()
    connecting = asyncio.create_task(bus.connect(theirs, stops.append))
    await asyncio.sleep(0)
    ours.close()
    with pytest.raises(PdctlError, match="the router's first process is gone"):
        await connecting
    assert stops == [False]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_word_to_stop_is_heard_whatever_a_worker_is_doing(*, at_once: bool):
    ours, theirs = socket.socketpair()
    stops: list[bool] = []
    wire = Wire(lambda _: None, lambda _: None)
    await asyncio.get_running_loop().create_connection(lambda: wire, sock=ours)
    wire.send(encode(Begin(Settings(), debug=True)))
    wire.send(encode(Stop(at_once)))
    bus = Bus()
    assert (await bus.connect(theirs, stops.append)).debug
    await until(lambda: stops, "the word")
    assert stops == [at_once]
    wire.close()


async def test_settings_are_told_as_they_are():
    keys = ApiKeys([ApiKey(0, "a", b"\0\xff", 5), ApiKey(1, "b", b"")])
    fixed = (FixedInstance("prefill", "10.0.0.1", 8000, 9000),)
    begin = Begin(Settings(api_keys=keys, fixed=fixed, token="t", drain=0.5), debug=True)
    assert decode(encode(begin)) == begin


# The wire.


async def wire_pair(received: list[bytes], lost: list[str]) -> tuple[Wire, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wire = Wire(received.append, lost.append)
    await asyncio.get_running_loop().create_connection(lambda: wire, sock=ours)
    return wire, theirs


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_messages_are_cut_out_of_any_pieces(messages: list[bytes], sizes: list[int]):
    received: list[bytes] = []
    wire = Wire(received.append, lambda _: None)
    stream = b"".join(len(message).to_bytes(4, "big") + message for message in messages)
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        wire.data_received(stream[:size])
        stream = stream[size:]
        turn += 1
    assert received == messages


async def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bus_module, "MAX_UNREAD", 1_000_000)
    lost: list[str] = []
    wire, theirs = await wire_pair([], lost)
    for _ in range(100):
        wire.send(b"x" * 100_000)
    await until(lambda: lost, "the wire's end")
    assert lost == ["it has left 1000000 bytes unread"]
    theirs.close()


async def test_who_sends_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch):
    lost: list[str] = []
    _, theirs = await wire_pair([], lost)
    theirs.send((2**31).to_bytes(4, "big"))
    await until(lambda: lost, "the wire's end")
    assert lost == [f"it sent a message of {2**31} bytes"]
    theirs.close()


async def test_what_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(bus_module, "MAX_MESSAGE", 10)
    received: list[bytes] = []
    wire, theirs = await wire_pair(received, [])
    wire.send(b"x" * 11)
    wire.send(b"y")
    async with asyncio.timeout(LIMIT):
        assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b"\0\0\0\1y"
    assert "11 bytes are more than 10" in caplog.text
    wire.close()
    theirs.close()
