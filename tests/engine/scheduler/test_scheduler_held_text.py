"""Whoever watches knows exactly which keys are held, however late it looks."""

import contextlib
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.held_text import MAX_KEYS, HeldText

CONTENTS = [b"a", b"b", b"c"]
KEYS = [b"1", b"2", b"3", b"4"]

actions = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(CONTENTS), st.sampled_from(KEYS)),
    st.tuples(st.just("drop"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("watch")),
    st.tuples(st.just("take"), st.integers(0, 20)),
)


class Watcher:
    def __init__(self, held: HeldText, stack: contextlib.ExitStack) -> None:
        self.notified = True  # the first time, there is no need to
        self.known: set[bytes] = set()
        self._held = held
        self._watch = stack.enter_context(held.watch(self._notify))

    def take(self) -> None:
        self.notified = False
        stored, removed = self._held.take(self._watch)
        assert not set(stored) & self.known
        assert set(removed) <= self.known
        assert len(set(stored) | set(removed)) == len(stored) + len(removed)
        self.known = (self.known | set(stored)) - set(removed)

    def _notify(self) -> None:
        self.notified = True


@settings(deadline=None)
@given(st.lists(actions, max_size=60))
def test_watchers_know_what_is_held_and_are_told_when_they_do_not(steps) -> None:
    held = HeldText()
    model: dict[bytes, set[bytes]] = {}
    with contextlib.ExitStack() as stack:
        watchers: list[Watcher] = []
        for action, *rest in steps:
            match action:
                case "add":
                    held.add(*rest)
                    model.setdefault(rest[0], set()).add(rest[1])
                case "drop":
                    held.drop(*rest)
                    model.pop(rest[0], None)
                case "watch":
                    watchers.append(Watcher(held, stack))
                case "take" if watchers:
                    watchers[rest[0] % len(watchers)].take()
            now = set().union(*model.values())
            assert all(watcher.notified or watcher.known == now for watcher in watchers)
        for watcher in watchers:
            watcher.take()
            assert watcher.known == now


def test_a_key_in_two_contents_is_held_until_both_have_gone() -> None:
    held = HeldText()
    held.add(b"a", b"1")
    held.add(b"b", b"1")
    with held.watch(lambda: None) as watch:
        assert held.take(watch) == ([b"1"], [])
        held.drop(b"a")
        assert held.take(watch) == ([], [])
        held.drop(b"b")
        assert held.take(watch) == ([], [b"1"])


def test_a_watcher_is_called_once_until_it_has_taken() -> None:
    held = HeldText()
    calls: list[None] = []
    with held.watch(lambda: calls.append(None)) as watch:
        held.add(b"a", b"1")
        held.add(b"a", b"2")
        assert len(calls) == 1
        held.take(watch)
        held.drop(b"a")
        assert len(calls) == 2
    held.add(b"a", b"1")
    assert len(calls) == 2


def test_what_comes_and_goes_unseen_is_not_told_of_and_takes_no_memory() -> None:
    held = HeldText()
    with held.watch(lambda: None) as watch:
        for number in range(1000):
            held.add(b"a", number.to_bytes(2))
            held.drop(b"a")
        assert watch.changes == {}


def test_a_content_has_a_limited_number_of_keys_and_the_one_not_noted_for_longest_makes_way() -> None:
    held = HeldText()
    keys = [number.to_bytes(2) for number in range(MAX_KEYS + 2)]
    for key in keys[:-2]:
        held.add(b"a", key)
    held.add(b"a", keys[0])
    with held.watch(lambda: None) as watch:
        held.take(watch)
        for key in keys[-2:]:
            held.add(b"a", key)
        assert held.take(watch) == (keys[-2:], keys[1:3])
        held.drop(b"a")
        assert set(held.take(watch).removed) == {keys[0], *keys[3:]}


def test_a_key_that_makes_way_is_still_held_by_another_content() -> None:
    held = HeldText()
    held.add(b"b", b"1")
    held.add(b"a", b"1")
    with held.watch(lambda: None) as watch:
        held.take(watch)
        for number in range(MAX_KEYS):
            held.add(b"a", number.to_bytes(2))
        assert held.take(watch).removed == []
        held.drop(b"b")
        assert held.take(watch).removed == [b"1"]


def test_a_watcher_in_another_thread_misses_nothing() -> None:
    held = HeldText()
    changed = threading.Event()

    def write() -> None:
        for number in range(20_000):
            held.add(bytes([number % 7]), KEYS[number % 4])
            held.drop(bytes([number % 5]))
        held.add(b"end", b"end")

    with held.watch(changed.set) as watch:
        writer = threading.Thread(target=write)
        writer.start()
        known: set[bytes] = set()
        while b"end" not in known:
            assert changed.wait(10), "not notified"
            changed.clear()
            stored, removed = held.take(watch)
            assert not set(stored) & known
            assert set(removed) <= known
            known = (known | set(stored)) - set(removed)
        writer.join()
    with held.watch(lambda: None) as fresh:
        assert set(held.take(fresh).stored) == known
