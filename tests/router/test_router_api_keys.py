"""API keys: which are accepted, and that no key gets more than its limits from all workers together."""

import hmac
import logging
import math
import mmap
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.errors import PdctlError
from pdctl.router.access.api_keys import ApiKey, ApiKeys, UsageTable, load_api_keys, size_needed

TWO = """
keys:
  - {name: alice, key: sk-alice, requests_per_minute: 60, tokens_per_minute: 100000}
  - name: bob
    key: sk-bob
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDCTL_API_KEY", raising=False)


def load(text: str, mode: int = 0o600) -> ApiKeys:
    path = Path("keys.yaml")
    path.write_text(text)
    path.chmod(mode)
    keys = load_api_keys(path)
    assert keys is not None
    return keys


def refusal(text: str) -> str:
    with pytest.raises(PdctlError) as caught:
        load(text)
    return "\n".join(filter(None, (str(caught.value), caught.value.detail)))


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def tables(workers: int, keys: int, clock: Clock) -> list[UsageTable]:
    memory = memoryview(bytearray(size_needed(workers, keys)))
    return [UsageTable(memory, worker, workers, keys, clock) for worker in range(workers)]


def limited(requests: int | None = None, tokens: int | None = None, index: int = 0) -> ApiKey:
    return ApiKey(index, f"key{index}", b"", requests, tokens)


def test_keys_of_a_file(caplog: pytest.LogCaptureFixture):
    keys = load(TWO)
    alice, bob = keys.keys
    assert (alice.index, alice.name, alice.requests_per_minute, alice.tokens_per_minute) == (0, "alice", 60, 100000)
    assert (bob.index, bob.name, bob.requests_per_minute, bob.tokens_per_minute) == (1, "bob", None, None)
    assert keys.find(b"Bearer sk-alice") is alice
    assert keys.find(b"bearer  sk-bob ") is bob
    assert "sk-" not in repr(keys.keys)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"sk-alice",
        b"Basic sk-alice",
        b"Bearer sk-alic",
        b"Bearer sk-alice2",
        b"Bearer \xff",
    ],
)
def test_what_is_no_key(header: bytes):
    assert load(TWO).find(header) is None


def test_every_key_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    keys = load(TWO)
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.find(b"Bearer sk-alice") is keys.keys[0]
    assert [a for a, _ in compared] == [key.digest for key in keys.keys], "the first one is right, and yet all are"
    assert {len(b) for _, b in compared} == {32}


def test_without_any_the_router_is_open():
    assert load_api_keys(None) is None


def test_the_environment_has_one_key_without_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PDCTL_API_KEY", "sk-one")
    keys = load_api_keys(None)
    assert keys is not None
    found = keys.find(b"Bearer sk-one")
    assert found is not None
    assert (found.name, found.requests_per_minute, found.tokens_per_minute) == ("default", None, None)
    with pytest.raises(PdctlError, match=r"given twice: in keys.yaml and in PDCTL_API_KEY"):
        load(TWO)


@pytest.mark.parametrize("key", ["", "two words", "sk-é", "line\n"])
def test_an_environment_that_cannot_be_a_key(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("PDCTL_API_KEY", key)
    with pytest.raises(PdctlError, match=r"^PDCTL_API_KEY: a key has printable ASCII characters"):
        load_api_keys(None)


def test_a_file_that_others_can_read_is_warned_about(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        load(TWO, mode=0o644)
    assert "keys.yaml can be read by every user of this machine: chmod 600 it" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keys.yaml: is empty"),
        ("keys: []", "keys.yaml:1: keys: must have at least 1 item(s), got a list"),
        ("key: []", "keys.yaml:1: key: unknown key, did you mean 'keys'?"),
        ("keys:\n- name: a", "keys.yaml:2: keys[0].key: is missing"),
        ("keys:\n- {name: a, key: k,\n   rpm: 3}", "keys.yaml:3: keys[0].rpm: unknown key"),
        ("keys:\n- name: a\n  key: 's k'", "keys.yaml:3: keys[0].key: a key has printable ASCII characters"),
        (
            "keys:\n- {name: a, key: k, requests_per_minute: 0}",
            "requests_per_minute: must be at least 1, got the number 0",
        ),
        ("keys:\n- {name: a, key: k, tokens_per_minute: 1.5}", "tokens_per_minute: expected a whole number"),
        (
            "keys:\n- {name: a, key: k}\n- {name: a, key: l}",
            "keys.yaml:3: keys[1].name: keys[0] has the name 'a' already",
        ),
        ("keys:\n- {name: a, key: k}\n- {name: b, key: k}", "keys.yaml:3: keys[1].key: is the key of 'a' already"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, said: str):
    assert said in refusal(text)


@pytest.mark.parametrize("text", ["98765", "keys: 98765", "keys: [98765]", "keys:\n- {name: a, key: 98765}"])
def test_an_error_does_not_tell_the_key(text: str):
    said = refusal(text)
    assert "98765" not in said
    assert "expected" in said


def test_requests_of_all_workers_count():
    clock = Clock()
    first, second = tables(2, 1, clock)
    key = limited(requests=3)
    assert [first.admit(key, 1), second.admit(key, 1), first.admit(key, 1)] == [0, 0, 0]
    clock.now += 10.25
    assert first.admit(key, 1) == second.admit(key, 1) == 61 - 10.25
    clock.now += 61 - 10.25
    assert second.admit(key, 1) == 0


def test_keys_do_not_share():
    [table] = tables(1, 3, Clock())
    one, other = limited(requests=1, index=0), limited(requests=1, index=2)
    assert table.admit(one, 1) == 0 == table.admit(other, 1)
    assert table.admit(one, 1) > 0
    assert table.admit(other, 1) > 0


def test_tokens_of_prompts_and_answers_count():
    clock = Clock()
    first, second = tables(2, 1, clock)
    key = limited(tokens=100)
    assert first.admit(key, 40) == 0
    assert second.admit(key, 61) == 61
    assert second.admit(key, 10) == 0
    clock.now += 20
    first.spend(key, 500)
    assert second.admit(key, 0) == 61, "what was generated has to leave the window first"
    clock.now += 61
    assert second.admit(key, 100) == 0


def test_a_prompt_over_the_limit_never_gets_in():
    [table] = tables(1, 1, Clock())
    key = limited(tokens=100)
    assert table.admit(key, 101) == math.inf
    assert table.admit(key, 100) == 0, "and has not been counted"


def test_what_is_refused_is_not_counted():
    clock = Clock()
    [table] = tables(1, 1, clock)
    key = limited(requests=10, tokens=100)
    assert table.admit(key, 90) == 0
    assert all(table.admit(key, 20) > 0 for _ in range(20))
    assert table.admit(key, 10) == 0


def test_a_key_without_limits_is_always_admitted():
    [table] = tables(1, 1, Clock())
    table.spend(limited(), 10**9)
    assert all(table.admit(limited(), 10**9) == 0 for _ in range(100))


def test_a_worker_that_is_started_again_goes_on_with_its_row():
    clock, memory = Clock(), memoryview(bytearray(size_needed(2, 1)))
    key = limited(requests=2)
    assert UsageTable(memory, 0, 2, 1, clock).admit(key, 1) == 0
    assert UsageTable(memory, 0, 2, 1, clock).admit(key, 1) == 0
    assert UsageTable(memory, 0, 2, 1, clock).admit(key, 1) > 0


_STEPS = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 3), st.floats(55, 66), st.floats(0, 300)),  # seconds before it
        st.integers(0, 2),  # the worker
        st.integers(0, 40),  # tokens of the prompt
        st.integers(0, 40),  # tokens generated, if it gets in
    ),
    max_size=60,
)


@given(_STEPS, st.integers(1, 5), st.integers(1, 100), st.floats(0, 200))
def test_no_window_has_more_than_the_limits(
    steps: list[tuple[float, int, int, int]], requests: int, tokens: int, start: float
):
    clock = Clock(start)
    workers = tables(3, 2, clock)
    key = limited(requests=requests, tokens=tokens, index=1)
    admitted: list[tuple[float, int, int]] = []  # when, tokens before the answer, tokens with it
    for pause, worker, prompt, generated in steps:
        clock.now += pause
        wait = workers[worker].admit(key, prompt)
        recent = [one for one in admitted if one[0] > clock.now - 60]
        within = [one for one in admitted if one[0] >= math.floor(clock.now) - 60]  # whole seconds are counted
        fits = len(within) < requests and sum(with_answer for _, _, with_answer in within) + prompt <= tokens
        assert (wait == 0) == fits
        if wait == 0:
            assert len(recent) < requests
            assert sum(with_answer for _, _, with_answer in recent) + prompt <= tokens
            workers[worker].spend(key, generated)
            admitted.append((clock.now, prompt, prompt + generated))
        elif wait < math.inf:
            assert_wait_is_right(workers, clock, key, prompt, wait)
        else:
            assert prompt > tokens


def test_long_use_by_several_workers_is_counted_by_the_second():
    chance, clock = random.Random(1), Clock()
    workers, key = tables(3, 1, clock), limited(requests=20)
    admitted: list[float] = []
    for _ in range(3000):
        clock.now += chance.choice((0, 0.3, 1.1, 2.6, 4.2))
        within = [when for when in admitted if when >= math.floor(clock.now) - 60]
        fits = len(within) < 20
        assert (chance.choice(workers).admit(key, 1) == 0) == fits
        admitted += [clock.now] if fits else []
    assert 500 < len(admitted) < 2500, "both happen"


def assert_wait_is_right(workers: list[UsageTable], clock: Clock, key: ApiKey, prompt: int, wait: float) -> None:
    """Asked a moment before the time is over, and by any worker, the answer is still no."""
    now = clock.now
    for worker in workers:
        clock.now = now + wait - min(0.001, wait / 2)
        assert worker.admit(key, prompt) == pytest.approx(now + wait - clock.now, abs=1e-6)
    clock.now = now


def test_real_processes_together_stay_within_the_limit(tmp_path: Path):
    workers, limit = 3, 500
    path = tmp_path / "usage"
    path.write_bytes(bytes(size_needed(workers, 1)))
    code = """
import mmap, sys
from pdctl.router.access.api_keys import ApiKey, UsageTable
file = open(sys.argv[1], "r+b")
table = UsageTable(memoryview(mmap.mmap(file.fileno(), 0)), int(sys.argv[2]), 3, 1)
key = ApiKey(0, "k", b"", 500, None)
sys.stdin.readline()
print(sum(table.admit(key, 1) == 0 for _ in range(2000)))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for worker in range(workers)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    admitted = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert limit <= sum(admitted) <= limit + workers - 1
    with path.open("r+b") as file:
        table = UsageTable(memoryview(mmap.mmap(file.fileno(), 0)), 0, workers, 1)
        assert 0 < table.admit(limited(requests=limit), 1) <= 61
