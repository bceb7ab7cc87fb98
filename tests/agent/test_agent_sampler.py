"""Which processes are ours, and how much they use."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pdctl.agent import procfs
from pdctl.agent.procfs import Identity, Stat, read_stat, with_descendants
from pdctl.agent.sampler import TreeSampler
from tests.agent.agent_harness import eventually


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def identity(pid: int) -> Identity:
    stat = read_stat(pid)
    assert stat is not None
    return stat.identity


def test_cpu_and_memory_between_two_samples(burner: subprocess.Popen[bytes]) -> None:
    sampler = TreeSampler("no-run")
    trees = {"p": {identity(burner.pid)}, "none": set()}
    assert sampler.sample(trees)["p"].cpu_percent == 0  # since when?
    before = read_stat(burner.pid)
    time.sleep(0.3)  # what is measured is time
    usages = sampler.sample(trees)
    assert before is not None
    assert 0 < usages["p"].cpu_percent <= 120
    assert usages["p"].memory_bytes > 1_000_000
    assert usages["p"].tree == trees["p"]
    assert (usages["none"].cpu_percent, usages["none"].memory_bytes) == (0, 0)


def test_an_identity_of_the_past_has_no_tree(burner: subprocess.Popen[bytes]) -> None:
    past = Identity(burner.pid, identity(burner.pid).start - 1)
    assert TreeSampler("no-run").sample({"p": {past}})["p"].tree == set()


def test_processes_of_others_are_read_once(burner: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(pid: int) -> Stat | None:
        read.append(pid)
        return read_stat(pid)

    monkeypatch.setattr(procfs, "read_stat", counting)
    sampler = TreeSampler("no-run")
    trees = {"p": {identity(burner.pid)}}
    sampler.sample(trees)
    assert 1 in read
    read.clear()
    late = subprocess.Popen(["sleep", "1000"])
    usage = sampler.sample({"p": {identity(burner.pid), identity(late.pid)}})["p"]
    late.kill()
    late.wait()
    assert {burner.pid, late.pid, os.getpid()} <= set(read)
    assert 1 not in read
    assert {pid for pid, _ in usage.tree} == {burner.pid, late.pid}


def test_an_orphan_is_found_although_its_parent_ended_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read before its parent's end, its line names a parent that is not to be found; the next one names us."""
    me = os.getpid()
    stats = {1: Stat(1, 0, 1, 0, 0), me: Stat(me, 1, 2, 0, 0), 900: Stat(900, 800, 5, 0, 7)}
    monkeypatch.setattr("pdctl.agent.sampler.list_pids", lambda: list(stats))
    monkeypatch.setattr("pdctl.agent.sampler.read_stats", lambda pids: {pid: stats[pid] for pid in pids})
    sampler = TreeSampler("no-run")
    sampler.sample({})
    stats[900] = Stat(900, me, 5, 0, 7)
    assert sampler.sample({"p": {Identity(900, 5)}})["p"].tree == {Identity(900, 5)}


def test_a_name_with_spaces_and_parentheses() -> None:
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) R 1 (b', 0, 0, 0); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        stat = read_stat(process.pid)
        assert stat is not None
        assert (stat.pid, stat.ppid) == (process.pid, os.getpid())
        process.kill()
    eventually(lambda: read_stat(process.pid) is None, "the end of a process that was reaped")


def test_a_zombie_does_not_live() -> None:
    process = subprocess.Popen(["true"])
    eventually(lambda: read_stat(process.pid) is None, "its end")  # not reaped yet
    process.wait()


def test_descendants() -> None:
    stats = {pid: Stat(pid, ppid, 0, 0, 0) for pid, ppid in [(1, 0), (2, 1), (3, 2), (4, 1), (5, 4)]}
    assert {stat.pid for stat in with_descendants(stats, [2, 4, 99])} == {2, 3, 4, 5}
