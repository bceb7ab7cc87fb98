"""Engines are killed, stopped, filled up and refused under a steady load: no client notices, and nothing is lost.

In float32, so that an answer does not depend on what is computed beside it.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.chaos_deployment import LIMIT_S, Deployment, Engine, deployment, until
from tests.e2e.chaos_load import Known, Load, learn, mixed_requests, steady_load, wide_requests
from tests.e2e.e2e_harness import Cli

pytestmark = pytest.mark.chaos

CLIENTS = 4


@pytest.fixture(scope="module")
def at(module_cli: Cli) -> Iterator[Deployment]:
    with deployment(module_cli) as running:
        yield running


@pytest.fixture(scope="module")
def known(at: Deployment) -> list[Known]:
    return learn(at.url, mixed_requests())


@contextmanager
def undisturbed(at: Deployment, known: list[Known], clients: int = CLIENTS) -> Iterator[Load]:
    """A load during which engines may suffer, but no request; afterwards nothing of it is left anywhere."""
    before = at.metrics()
    with steady_load(at.url, known, clients) as load:
        yield load
    for engine in at.engines:
        until(engine.idle, f"{engine.name} to have all its blocks again")
    until(lambda: at.metrics()["requests_in_flight"] == 0, "the router to be done with every request")
    figures = at.metrics()
    assert figures["broken_streams_total"] == before["broken_streams_total"]
    left = {name: value for name, value in figures.items() if "s_in_flight{" in name and value}
    assert left == {}, "load that the router still counts"
    counts = {name: figures[name] - before.get(name, 0) for name in figures if name.startswith("requests_total{")}
    failed = {name: count for name, count in counts.items() if count and 'status="200"' not in name}
    assert failed == {}


def wait_until_busy(load: Load, engine: Engine) -> None:
    """Wait until the engine has something to lose: a stream in its middle, or a prompt that it computes."""
    if engine.role == "decode":
        load.stream_at(engine.url)
    else:
        until(lambda: engine.metric("pdctl:num_requests_running") > 0, f"{engine.name} to compute a prompt")


def test_each_engine_is_killed(at: Deployment, known: list[Known]) -> None:
    """One of each role, shortly after one another, then the others."""
    before = at.metrics()
    with undisturbed(at, known) as load:
        for engines in (at.engines[:2], at.engines[2:]):
            for engine in engines:
                wait_until_busy(load, engine)
                engine.kill()
                at.wait_for(engine, "down", "gone")
                engine.start_again()
            load.turn_over()  # so that no request meets with more than two misfortunes
            for engine in engines:
                at.wait_for(engine, "ready")
    check_that_requests_moved(before, at.metrics())


def test_each_engine_is_stopped(at: Deployment, known: list[Known]) -> None:
    """The same; the first of the two for longer than its peers bear silence."""
    before = at.metrics()
    with undisturbed(at, known) as load:
        for engines in (at.engines[:2], at.engines[2:]):
            with ExitStack() as stack:
                for engine in engines:
                    wait_until_busy(load, engine)
                    stack.enter_context(engine.stopped())
                    at.wait_for(engine, "down", "gone")
                load.turn_over()
            for engine in engines:
                at.wait_for(engine, "ready")
    check_that_requests_moved(before, at.metrics())


def check_that_requests_moved(before: dict[str, float], after: dict[str, float]) -> None:
    """Else the test would prove nothing: there was a stream in its middle at each of the two decode engines."""
    assert after["resumes_total"] >= before["resumes_total"] + 2
    assert after["retries_total"] > before["retries_total"]


def test_decode_pools_are_full(at: Deployment) -> None:
    """What has no room waits, and none is refused."""
    known = learn(at.url, wide_requests())
    with undisturbed(at, known, clients=6):
        for engine in at.engines:
            if engine.role == "decode":
                until(partial(is_full, engine), f"{engine.name} to be full")


def is_full(engine: Engine) -> bool:
    return engine.metric("pdctl:num_requests_waiting") > 0


def test_engines_that_do_not_belong_here(at: Deployment, known: list[Known], tiny_model: Path) -> None:
    """Refused, or never asked; the others serve on."""
    asked: list[str] = []
    with (
        undisturbed(at, known, clients=2) as load,
        healthy_server(asked) as port,
        at.stranger("decode", tiny_model) as log,
    ):
        no_token = at.register(None, role="decode", port=port)
        wrong_role = at.register(at.token, role="mixed", port=port)
        wrong_size = at.register(at.token, role="decode", port=port, tp_size=2)
        load.turn_over()
        until(lambda: "refused with status 401" in log.read_text(), "the engine with another token to be refused")
    assert (no_token.status_code, wrong_role.status_code, wrong_size.status_code) == (401, 400, 200)
    assert "mixed" in wrong_role.json()["detail"]
    assert asked == []


@contextmanager
def healthy_server(asked: list[str]) -> Iterator[int]:
    """Something that answers /health as an engine does, and notes what else it is asked; its port."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(LIMIT_S)
        server.server_close()
