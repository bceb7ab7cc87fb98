"""Engines are killed, stopped, refused and filled up under a steady load: no client notices, and nothing is lost.

In float32, so that an answer does not depend on what is computed beside it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.e2e.chaos_deployment import LIMIT_S, Deployment, Engine, deployment, until
from tests.e2e.chaos_load import Answer, Load, ask, requests, steady_load
from tests.e2e.e2e_harness import Cli

CLIENTS = 4


@pytest.fixture(scope="module")
def at(module_cli: Cli) -> Iterator[Deployment]:
    with deployment(module_cli) as running:
        yield running


@pytest.fixture(scope="module")
def expected(at: Deployment) -> dict[int, Answer]:
    """What each request of the load is answered when nothing happens."""
    with httpx.Client(base_url=at.url, timeout=LIMIT_S) as http, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda request: ask(http, request), requests()))
    assert len(set(answers)) == len(answers)
    return dict(enumerate(answers))


@contextmanager
def undisturbed(at: Deployment, expected: dict[int, Answer], clients: int = CLIENTS) -> Iterator[Load]:
    """A load during which engines may suffer, but no request; afterwards nothing of it is left anywhere."""
    with steady_load(at.url, expected, clients) as load:
        yield load
    for engine in at.engines:
        until(engine.idle, f"{engine.name} to have all its blocks again")
    figures = at.metrics()
    assert figures["requests_in_flight"] == figures["broken_streams_total"] == 0
    left = {name: value for name, value in figures.items() if "s_in_flight{" in name and value}
    assert left == {}, "load that the router still counts"
    failed = {name for name in figures if name.startswith("requests_total{") and 'status="200"' not in name}
    assert failed == set()


def wait_until_busy(load: Load, engine: Engine) -> None:
    """Wait until the engine has something to lose: a stream in its middle, or a prompt that it computes."""
    if engine.role == "decode":
        load.stream_at(engine.url)
    else:
        until(lambda: engine.metric("pdctl:num_requests_running") > 0, f"{engine.name} to compute a prompt")


def test_each_engine_is_killed(at: Deployment, expected: dict[int, Answer]) -> None:
    before = at.metrics()
    with undisturbed(at, expected) as load:
        for engine in at.engines:
            wait_until_busy(load, engine)
            engine.kill()
            at.wait_for(engine, "down", "gone")
            engine.start_again()
            at.wait_for(engine, "ready")
    after = at.metrics()
    assert after["resumes_total"] >= before["resumes_total"] + 2, "each decode was killed in the middle of a stream"
    assert after["retries_total"] > before["retries_total"]


def test_engines_are_stopped(at: Deployment, expected: dict[int, Answer]) -> None:
    """One alone, then one of each role together, for longer than their peers bear silence."""
    before = at.metrics()
    first_prefill, first_decode, *others = at.engines
    with undisturbed(at, expected) as load:
        for engines in ([first_prefill], [first_decode], others):
            for engine in engines:
                wait_until_busy(load, engine)
            with ExitStack() as stack:
                for engine in engines:
                    stack.enter_context(engine.stopped())
                for engine in engines:
                    at.wait_for(engine, "down", "gone")
                load.more(CLIENTS)
            for engine in engines:
                at.wait_for(engine, "ready")
            load.more(CLIENTS)
    after = at.metrics()
    assert after["resumes_total"] > before["resumes_total"]
    assert after["retries_total"] > before["retries_total"]
