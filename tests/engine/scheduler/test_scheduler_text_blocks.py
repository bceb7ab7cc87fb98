"""The text that ends in a block is held exactly as long as a block with its content."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.block_manager import BlockManager
from engine.scheduler.held_text import HeldText
from engine.scheduler.request import Request, SamplingParams
from tests.engine.scheduler.rig import Rig

BLOCK_SIZE = 2


def named(prompt: list[int], *ends: int, style: str = "", name: str = "r", max_tokens: int = 1) -> Request:
    """A request whose keys say themselves what they name: the tokens up to their end."""
    keys = tuple((end, key_of(prompt, end, style)) for end in ends)
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens), keys)


def key_of(prompt: list[int], end: int, style: str = "") -> bytes:
    return f"{style}{prompt[:end]}".encode()


def held_by(held: HeldText) -> set[bytes]:
    with held.watch(lambda: None) as watch:
        return set(held.take(watch).stored)


class Filler:
    """Fills blocks, and remembers what each holds."""

    def __init__(self, num_blocks: int) -> None:
        self.manager = BlockManager(num_blocks, BLOCK_SIZE)
        self.tables: list[list[int]] = []
        self._contents: dict[int, tuple[int, ...]] = {}
        self._claims: dict[tuple[int, ...], set[bytes]] = {}

    def fill(self, request: Request, start: int) -> None:
        """Compute a prompt, which is looked up first, in two chunks; the first ends near `start`."""
        manager, prompt = self.manager, request.prompt
        matched = manager.match(prompt, (len(prompt) - 1) // BLOCK_SIZE)
        missing = -(-len(prompt) // BLOCK_SIZE) - len(matched)
        if missing > manager.num_free:
            manager.release(matched)
            return
        fresh = manager.allocate(missing)
        self._forget(fresh)
        table, present = matched + fresh, len(matched) * BLOCK_SIZE
        manager.note_text(request, table, 0, present)
        middle = min(max(start, present), len(prompt))
        for begin, end in ((present, middle), (middle, len(prompt))):
            manager.commit(prompt, table, begin, end)
            manager.note_text(request, table, begin, end)
        self.tables.append(table)
        self._remember(request, table)

    def release(self, index: int) -> None:
        self.manager.release(self.tables.pop(index))

    def expected(self) -> set[bytes]:
        """The keys of what the blocks hold now; a free block holds nothing."""
        self._forget(self.manager._free)
        return set().union(*(self._claims.get(content, set()) for content in self._contents.values()))

    def _remember(self, request: Request, table: list[int]) -> None:
        prompt, full = request.prompt, len(request.prompt) // BLOCK_SIZE
        for index in range(full):
            self._contents[table[index]] = tuple(prompt[: (index + 1) * BLOCK_SIZE])
        for end, key in request.text_keys if full else ():
            index = min((end - 1) // BLOCK_SIZE, full - 1)
            self._claims.setdefault(self._contents[table[index]], set()).add(key)

    def _forget(self, blocks: list[int]) -> None:
        for block in blocks:
            content = self._contents.pop(block, None)
            if content is not None and content not in self._contents.values():
                self._claims.pop(content, None)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    prompt = draw(st.lists(st.integers(0, 1), min_size=1, max_size=9))
    ends = draw(st.lists(st.integers(1, len(prompt)), max_size=4, unique=True))
    return named(prompt, *sorted(ends), style=draw(st.sampled_from(["", "spaced "])))


@settings(deadline=None)
@given(num_blocks=st.integers(1, 12), data=st.data())
def test_held_are_the_keys_of_what_the_blocks_hold(num_blocks: int, data: st.DataObject) -> None:
    filler = Filler(num_blocks)
    for _ in range(data.draw(st.integers(1, 15))):
        if filler.tables and data.draw(st.booleans()):
            filler.release(data.draw(st.integers(0, len(filler.tables) - 1)))
        else:
            filler.fill(data.draw(requests()), data.draw(st.integers(0, 9)))
        assert held_by(filler.manager.held_text) == filler.expected()
        filler.manager.check(filler.tables)


def test_eviction_tells_which_text_has_gone() -> None:
    filler = Filler(3)
    prompt = [1, 2, 3, 4, 5, 6]
    filler.fill(named(prompt, 1, 2, 4, 5), 0)
    filler.release(0)
    held = filler.manager.held_text
    with held.watch(lambda: None) as watch:
        assert set(held.take(watch).stored) == {key_of(prompt, end) for end in (1, 2, 4, 5)}
        filler.manager.allocate(1)
        assert held.take(watch) == ([], [key_of(prompt, 5)])
        filler.manager.allocate(2)
        assert set(held.take(watch).removed) == {key_of(prompt, end) for end in (1, 2, 4)}


def test_a_text_that_ends_in_a_partial_block_is_held_with_the_last_full_one() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    for prompt, keys in (([1, 2, 3], {key_of([1, 2, 3], 3)}), ([5], set())):
        manager.commit(prompt, table := manager.allocate(2), 0, len(prompt))
        manager.note_text(named(prompt, len(prompt)), table, 0, len(prompt))
        assert held_by(manager.held_text) >= keys
    assert held_by(manager.held_text) == {key_of([1, 2, 3], 3)}


def test_a_block_of_prompt_and_answer_holds_no_text() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    prompt, answer = [1, 2, 3], [4]
    manager.commit(prompt + answer, table := manager.allocate(2), 0, 4)  # at once, after a preemption
    manager.note_text(named(prompt, 3), table, 0, 4)
    manager.release(table)
    manager.allocate(1)
    assert manager.match(prompt + answer, 2) == table[:1]
    assert held_by(manager.held_text) == {key_of(prompt, 3)}


def test_text_stays_while_a_twin_of_its_block_does_and_the_twin_is_found() -> None:
    filler = Filler(2)
    prompt = [1, 2]
    filler.fill(named(prompt, 2), 0)
    filler.fill(named(prompt, 2), 0)
    assert filler.tables == [[0], [1]]
    filler.release(0)
    filler.manager.allocate(1)  # takes block 0
    assert held_by(filler.manager.held_text) == {key_of(prompt, 2)}
    assert filler.manager.match(prompt, 1) == [1]


def test_nothing_is_held_without_prefix_caching() -> None:
    manager = BlockManager(2, BLOCK_SIZE, prefix_caching=False)
    manager.commit([1, 2], table := manager.allocate(1), 0, 2)
    manager.note_text(named([1, 2], 2), table, 0, 2)
    assert held_by(manager.held_text) == set()


def test_a_prompt_computed_in_chunks_is_held_as_far_as_it_is_computed() -> None:
    rig = Rig(max_batched_tokens=8)
    prompt = list(range(14))
    rig.scheduler.submit(named(prompt, 3, 7, 11, 14))
    assert held_by(rig.scheduler.held_text) == set()
    rig.step()
    assert held_by(rig.scheduler.held_text) == {key_of(prompt, end) for end in (3, 7)}
    rig.run()
    assert held_by(rig.scheduler.held_text) == {key_of(prompt, end) for end in (3, 7, 11, 14)}


def test_a_prompt_found_in_the_cache_gets_the_keys_of_its_new_spelling() -> None:
    rig = Rig()
    prompt = list(range(9))
    for style in ("", "spaced "):
        rig.scheduler.submit(named(prompt, 4, 8, style=style))
        rig.run()
    assert held_by(rig.scheduler.held_text) == {key_of(prompt, end, s) for end in (4, 8) for s in ("", "spaced ")}


def test_a_prompt_received_from_a_peer_is_held_here_too() -> None:
    rig = Rig()
    prompt = list(range(9))
    for style in ("", "spaced "):  # the second time most of it is here already
        request = named(prompt, 4, 8, style=style)
        rig.decode(request, rig.reserve(request.request_id, prompt))
    assert held_by(rig.scheduler.held_text) == {key_of(prompt, end, s) for end in (4, 8) for s in ("", "spaced ")}


def test_a_held_prompt_stays_known_after_its_release() -> None:
    rig = Rig()
    prompt = list(range(8))
    rig.scheduler.submit(named(prompt, 8), hold=True)
    rig.run()
    rig.scheduler.release("r")
    assert held_by(rig.scheduler.held_text) == {key_of(prompt, 8)}


def test_a_preempted_prompt_is_held_again_once_it_is_computed_anew() -> None:
    rig = Rig(num_blocks=6)
    old, young = named([1] * 8, 8, name="old", max_tokens=9), named([2] * 8, 8, name="young", max_tokens=9)
    held = rig.scheduler.held_text
    with held.watch(lambda: None) as watch:
        told: list[bytes] = []
        for request in (old, young):
            rig.scheduler.submit(request)
        while rig.step() is not None:
            changes = held.take(watch)
            told += changes.stored
            if changes.removed:
                told.append(b"gone")
    assert rig.stats.preemptions
    assert rig.stats.blocks_free == 6
    assert told.count(key_of([2] * 8, 8)) == told.count(b"gone") + 1
    assert key_of([2] * 8, 8) in held_by(held)
