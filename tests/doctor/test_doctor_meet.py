"""Hosts that visit each other, over real sockets: addresses of the loopback network stand for them."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pdctl.agent import meet as meet_module
from pdctl.agent.meet import meet
from pdctl.doctor.system import Meeting

A, B = "127.0.0.2", "127.0.0.3"
PATIENT_S = 30.0  # far longer than a meeting at which all come

Meet = Callable[..., "Future[Meeting]"]


@pytest.fixture
def begin() -> Iterator[Meet]:
    """Begins a host's part in a thread of its own."""
    with ThreadPoolExecutor() as threads:

        def begin(name: str, **request: Any) -> "Future[Meeting]":
            asked = {"token": "t", "name": name, "listen": [], "expect": [], "reach": [], "seconds": PATIENT_S}
            return threads.submit(lambda: Meeting.model_validate(meet({**asked, **request})))

        yield begin


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """A server that is none of ours; returns its port."""
    listening: list[socket.socket] = []

    def serve(handle: Callable[[socket.socket], None]) -> int:
        server = socket.create_server((A, 0))
        listening.append(server)
        threading.Thread(target=lambda: handle(server.accept()[0]), daemon=True).start()
        return int(server.getsockname()[1])

    yield serve
    for server in listening:
        server.close()


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probing:
        return int(probing.getsockname()[1])


def test_all_meet_and_leave_at_once(begin: Meet):
    ports = {A: [free_port(A), free_port(A)], B: [free_port(B)]}
    listen = {address: [[address, port] for port in ports[address]] for address in (A, B)}
    began = time.monotonic()
    a = begin("a", listen=listen[A], expect=["b"], reach=[["b", B, ports[B][0]]])
    b = begin("b", listen=listen[B], expect=["a"], reach=[["a", A, port] for port in ports[A]])
    assert a.result() == Meeting(visits=(("b", ports[B][0], "met"),))
    assert b.result() == Meeting(visits=tuple(("a", port, "met") for port in ports[A]))
    assert time.monotonic() - began < PATIENT_S / 2
    for port in ports[A]:
        with socket.socket() as engine:
            engine.bind((A, port))  # nothing lingers of the visits, even for one that does not reuse addresses


def test_a_host_that_comes_late_is_waited_for(begin: Meet, monkeypatch: pytest.MonkeyPatch):
    port, refused, outcome_of = free_port(A), threading.Event(), meet_module._outcome_of
    monkeypatch.setattr(meet_module, "_outcome_of", lambda error: refused.set() or outcome_of(error))
    b = begin("b", reach=[["a", A, port]])
    assert refused.wait(PATIENT_S)
    a = begin("a", listen=[[A, port]], expect=["b"])
    assert b.result().visits == (("a", port, "met"),)
    assert a.result() == Meeting()


def test_who_does_not_come_is_not_waited_for_longer(begin: Meet):
    port = free_port(A)
    began = time.monotonic()
    assert begin("a", listen=[[A, port]], expect=["b"], seconds=0.5).result() == Meeting()
    assert 0.5 <= time.monotonic() - began < 5


def test_nobody_listens(begin: Meet):
    port = free_port(A)
    assert begin("b", reach=[["a", A, port]], seconds=0.5).result().visits == (("a", port, "refused"),)


def test_a_name_that_is_not_known(begin: Meet, monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert begin("b", reach=[["a", "name.invalid", 80]], seconds=5).result().visits == (("a", 80, "unknown name"),)


def test_a_port_that_another_has(begin: Meet):
    with socket.create_server((A, 0)) as taken:
        port = taken.getsockname()[1]
        assert begin("a", listen=[[A, port]], expect=["b"]).result().deaf == ((port, "Address already in use"),)


def test_who_does_not_know_the_token_is_no_visitor(begin: Meet):
    port = free_port(A)
    a = begin("a", listen=[[A, port]], expect=["b"], seconds=2)
    assert begin("b", token="another", reach=[["a", A, port]]).result().visits == (("a", port, "stranger"),)
    assert a.result() == Meeting()


def answer(connection: socket.socket, *, reads: bool, sends: bytes) -> None:
    """Greets as we do, and then takes or gives only so much: as a network that loses large packets."""
    greeting = connection.makefile("rb").readline()
    connection.sendall(greeting.rpartition(b" ")[0].replace(b"meet", b"met") + b"\n")
    if reads:
        connection.recv(64 * 1024, socket.MSG_WAITALL)
    connection.sendall(sends)
    time.sleep(PATIENT_S)


@pytest.mark.parametrize(
    ("handle", "outcome"),
    [
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 and more than the answer has"), "stranger"),
        (lambda connection: connection.close(), "stranger"),
        (lambda connection: answer(connection, reads=False, sends=b""), "stuck there"),
        (lambda connection: answer(connection, reads=True, sends=b"got\n" + b"x" * 100), "stuck back"),
    ],
    ids=["talks otherwise", "hangs up", "loses what is sent", "loses what comes back"],
)
def test_what_else_may_answer(
    begin: Meet,
    serve: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    handle: Callable[[socket.socket], None],
    outcome: str,
):
    monkeypatch.setattr(meet_module, "STEP_S", 0.5)
    port = serve(handle)
    assert begin("b", reach=[["a", A, port]]).result().visits == (("a", port, outcome),)


def test_the_token_comes_over_stdin(tmp_path: Path):
    """Command lines can be read by everybody on a host."""
    port = free_port(A)
    requests = [
        {"name": "a", "listen": [[A, port]], "expect": ["b"], "reach": []},
        {"name": "b", "listen": [], "expect": [], "reach": [["a", A, port]]},
    ]
    command = [sys.executable, "-m", "pdctl.agent", "meet", "--dir", str(tmp_path)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in requests]
    for process, request in zip(running, requests, strict=True):
        assert process.stdin
        process.stdin.write(json.dumps({**request, "token": "t", "seconds": PATIENT_S}))
        process.stdin.close()
    answers = [json.loads(process.stdout.read()) for process in running if process.stdout]
    assert [process.wait(10) for process in running] == [0, 0]
    assert answers == [{"deaf": [], "visits": []}, {"deaf": [], "visits": [["a", port, "met"]]}]
