"""Memory that workers share: each writes its own load, and reads that of all."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.access.api_keys import ApiKey, UsageTable
from pdctl.router.engines.load import Load
from pdctl.router.workers import shared as shared_module
from pdctl.router.workers.shared import Shared, create


@pytest.fixture
def memory() -> Iterator[int]:
    fd = create(3, 2)
    yield fd
    os.close(fd)


def views(fd: int) -> list[Shared]:
    return [Shared(fd, worker, 3, 2) for worker in range(3)]


def numbers(load: Load) -> tuple[int, int]:
    return load.requests, load.tokens


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["10.0.0.1:1", "[::1]:1"]), st.integers(0, 9000)), max_size=40
    )
)
def test_all_see_the_sum_and_it_ends_at_nothing(given: list[tuple[int, str, int]]):
    fd = create(3, 0)
    workers = [Shared(fd, worker, 3, 0) for worker in range(3)]
    for worker, key, tokens in given:
        workers[worker].load_of(key).add(tokens)
    for key in ("10.0.0.1:1", "[::1]:1"):
        at_key = [tokens for _, other, tokens in given if other == key]
        assert {numbers(worker.load_of(key)) for worker in workers} == {(len(at_key), sum(at_key))}
    for worker, key, tokens in given:
        workers[worker].load_of(key).remove(tokens)
    assert {numbers(worker.load_of(key)) for worker in workers for key in ("10.0.0.1:1", "[::1]:1")} == {(0, 0)}
    os.close(fd)


def test_what_a_dead_worker_had_assigned_is_taken_back(memory: int):
    one, two, _ = views(memory)
    for view in (one, two):
        for key in ("a:1", "b:1"):
            view.load_of(key).add(10)
    one.clear(1)
    assert numbers(one.load_of("a:1")) == numbers(two.load_of("b:1")) == (1, 10)
    again = Shared(memory, 1, 3, 2)  # its successor
    again.load_of("a:1").add(5)
    assert numbers(one.load_of("a:1")) == (2, 15)


def test_an_engine_that_comes_back_still_has_what_it_had(memory: int):
    one, two, _ = views(memory)
    before = one.load_of("a:1")
    before.add(10)
    after = one.load_of("a:1")  # removed, and registered again
    after.add(20)
    assert numbers(two.load_of("a:1")) == (2, 30)
    before.remove(10)
    assert numbers(two.load_of("a:1")) == (1, 20)


def test_each_has_its_own_counters_since_the_start(memory: int):
    one, two, _ = views(memory)
    one.load_of("a:1").add(1)
    assert (one.load_of("a:1").assigned, two.load_of("a:1").assigned) == (1, 0)


def test_a_full_table_and_a_key_that_is_too_long(
    memory: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(shared_module, "_ROWS", 2)
    one, two, _ = views(memory)
    for key in ("a:1", "b:1"):
        one.load_of(key).add(1)
    for key in ("c:1", "x" * 65):
        load = one.load_of(key)
        load.add(7)
        assert numbers(load) == (1, 7), "counted by this worker alone"
        assert f"this worker does not know what others assign to {key}" in caplog.text
    assert numbers(two.load_of("a:1")) == (1, 1)
    assert numbers(two.load_of("x" * 64)) == (0, 0)


def test_what_keys_use_lies_behind_the_loads(memory: int):
    one, two, _ = views(memory)
    alice = ApiKey(1, "alice", b"", requests_per_minute=2)
    tables = [UsageTable(view.usage, worker, 3, 2) for worker, view in enumerate((one, two))]
    assert [table.admit(alice, 1) for table in tables] == [0.0, 0.0]
    assert tables[0].admit(alice, 1) > 0
    for number in range(50):
        one.load_of(f"{number}:1").add(1)
    one.clear(0)
    assert tables[1].admit(alice, 1) > 0, "a limit outlives a worker"


def test_processes_that_claim_rows_at_the_same_time_agree(memory: int):
    code = (
        "import sys; from pdctl.router.workers.shared import Shared\n"
        "view = Shared(int(sys.argv[1]), int(sys.argv[2]), 3, 2)\n"
        "for number in range(300): view.load_of(f'10.0.0.1:{number * (1 + int(sys.argv[2])) % 300}').add(1)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(memory), str(worker)], pass_fds=(memory,))
        for worker in (1, 2)
    ]
    assert [process.wait(30) for process in started] == [0, 0]
    view = Shared(memory, 0, 3, 2)
    assert sum(view.load_of(f"10.0.0.1:{number}").requests for number in range(300)) == 600
