"""Ports that are reserved on a host: for as long as the agent lives that has asked for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdctl.agent import port_book
from pdctl.agent.lock import take_lock
from pdctl.agent.paths import AgentError
from pdctl.agent.port_book import PortBook

OTHER = """
import sys
from pathlib import Path
from pdctl.agent.port_book import PortBook
taken = PortBook(Path(sys.argv[1])).reserve(sys.argv[2], [int(port) for port in sys.argv[3:]])
print(sorted(taken), flush=True)
sys.stdin.read()
"""


class Run:
    """Another process that reserves ports, and lives until it is ended."""

    def __init__(self, folder: Path, name: str, *ports: int) -> None:
        command = [sys.executable, "-c", OTHER, folder, name, *map(str, ports)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def taken(self) -> list[int]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate(timeout=20)


def test_ports_of_a_run_are_not_given_to_another(tmp_path: Path) -> None:
    run = Run(tmp_path, "one", 20000, 20001)
    assert run.taken == []
    book = PortBook(tmp_path)
    held = "reserved by deployment run one"
    assert book.reserved([20001, 20002]) == {20001: held}
    assert book.reserve("two", [20001, 20002]) == {20001: held}
    assert book.reserved([20002]) == {}, "all of them or none"
    assert book.reserve("two", [20002]) == {}
    run.end()
    assert book.reserved([20000, 20001, 20002]) == {20002: "reserved by deployment run two"}
    assert book.reserve("two", [20001]) == {}


def test_a_run_has_the_ports_that_it_has_asked_for_last(tmp_path: Path) -> None:
    book = PortBook(tmp_path)
    assert book.reserve("one", [1, 2]) == {}
    assert book.reserve("one", [2, 3]) == {}
    assert sorted(book.reserved([1, 2, 3])) == [2, 3]
    assert book.reserve("one", []) == {}
    assert book.reserved([1, 2, 3]) == {}


def test_of_several_at_once_one_gets_them(tmp_path: Path) -> None:
    runs = [Run(tmp_path, str(number), 20000, 20001 + number) for number in range(4)]
    assert sorted(run.taken for run in runs) == [[], [20000], [20000], [20000]]
    for run in runs:
        run.end()


def test_entries_of_other_boots_and_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = PortBook(tmp_path)
    assert book.reserve("one", [20000]) == {}
    network = port_book._network()
    monkeypatch.setattr(port_book, "_network", lambda: network + 1)
    assert book.reserve("two", [20000]) == {}, "each network has ports of its own"
    monkeypatch.setattr(port_book, "_network", lambda: network)
    assert book.reserved([20000]) == {20000: "reserved by deployment run one"}
    monkeypatch.setattr(port_book, "boot_id", lambda: "another")
    assert book.reserved([20000]) == {}


def test_a_damaged_book(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('[{"port": 1}]')
    with pytest.raises(AgentError, match=r"ports.json is damaged, or of another version of pdctl: remove it"):
        PortBook(tmp_path).reserved([1])


def test_a_book_that_is_held_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_book, "LOCK_S", 0.0)
    lock = take_lock(tmp_path, 0, "ports.lock")
    assert lock is not None
    with pytest.raises(AgentError, match=r"ports.lock was not free within 0 s"):
        PortBook(tmp_path).reserve("one", [1])
    os.close(lock)
