"""Who uses which KV block."""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable

from engine.scheduler.held_text import HeldText
from engine.scheduler.prefix_cache import PrefixCache
from engine.scheduler.request import Request


class BlockManager:
    """Counts the references to each block; keeps full ones for reuse after the last, until the space is needed.

    A block is in exactly one state: referenced (by sequences, holds, reservations), cached (full, unreferenced, the
    least recently used evicted first), or free.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.held_text = HeldText()
        self._block_size = block_size
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks))[::-1]
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._prefixes = PrefixCache(block_size) if prefix_caching else None

    @property
    def num_free(self) -> int:
        """How many blocks can be allocated now, cached ones among them."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, whose contents are lost. The caller has looked at num_free."""
        if count > self.num_free:
            raise RuntimeError(f"{count} blocks wanted, {self.num_free} free")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def match(self, tokens: list[int], max_blocks: int) -> list[int]:
        """Take a reference to each block that holds the longest known prefix of `tokens`, at most `max_blocks`."""
        if self._prefixes is None:
            return []
        blocks = self._prefixes.match(tokens, max_blocks)
        self.share(blocks)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each block."""
        for block in blocks:
            if not self._references[block]:
                del self._cached[block]
            self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Tell whether more than one reference to the block exists: it must not be written."""
        return self._references[block] > 1

    def commit(self, tokens: list[int], block_table: list[int], start: int, end: int) -> None:
        """Note that the KV of tokens[start:end] is complete: what it filled can now be found by its tokens.

        What comes before `start` has been committed already, or was matched.
        """
        size = self._block_size
        first, stop = start // size, end // size
        if self._prefixes is None or first == stop:
            return
        for index in range(first, stop):
            previous = block_table[index - 1] if index else None
            self._prefixes.insert(block_table[index], previous, tokens[index * size : (index + 1) * size])

    def note_text(self, request: Request, block_table: list[int], start: int, end: int) -> None:
        """Note which text ends in tokens[start:end] of the request, whose blocks have been committed, or matched.

        Text whose end no full block of the prompt holds is taken to end with the last one.
        """
        size, keys = self._block_size, request.text_keys
        full = len(request.prompt) // size
        first, stop = start // size, min(end // size, full)
        if self._prefixes is None or first >= stop:
            return
        begin = bisect_right(keys, first * size, key=_end)
        for tokens, key in keys[begin : None if stop == full else bisect_right(keys, stop * size, key=_end)]:
            block = block_table[min((tokens - 1) // size, stop - 1)]
            self.held_text.add(self._prefixes.key_of(block), key)

    def release(self, block_table: list[int]) -> None:
        """Give back one reference to each block. The end of a prefix is evicted before its beginning."""
        for block in reversed(block_table):
            if not self._references[block]:
                raise RuntimeError(f"block {block} was released more often than taken")
            self._references[block] -= 1
            if not self._references[block]:
                self._retire(block)

    def check(self, block_tables: Iterable[list[int]]) -> None:
        """Raise RuntimeError unless these tables account for every reference, and every block has one state."""
        held = Counter(block for table in block_tables for block in table)
        for block, count in enumerate(self._references):
            if count != held[block]:
                raise RuntimeError(f"block {block} has {count} references, {held[block]} of them known")
        idle = [*self._free, *self._cached]
        if len(idle) != len(set(idle)) or len(idle) + len(held) != len(self._references):
            raise RuntimeError(
                f"{len(self._free)} free + {len(self._cached)} cached + {len(held)} referenced blocks "
                f"are not the pool's {len(self._references)}"
            )

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._forget(block)
        return block

    def _retire(self, block: int) -> None:
        found = None if self._prefixes is None else self._prefixes.found_for(block)
        if found == block:
            self._cached[block] = None
            return
        if found is not None and found in self._cached:
            self._cached.move_to_end(found)  # it was of use until now, through its twin
        self._forget(block)
        self._free.append(block)

    def _forget(self, block: int) -> None:
        gone = None if self._prefixes is None else self._prefixes.forget(block)
        if gone is not None:
            self.held_text.drop(gone)


def _end(text_key: tuple[int, bytes]) -> int:
    return text_key[0]
