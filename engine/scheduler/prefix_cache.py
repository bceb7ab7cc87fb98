"""Which blocks hold which tokens: full blocks found again by a hash over everything up to their end."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

KEY_BYTES = 16
ROOT_KEY = bytes(KEY_BYTES)  # stands before a prompt's first block


def block_key(parent: bytes, tokens: list[int]) -> bytes:
    """Name a full block after its tokens and the key of the block before it. The same in every process and machine."""
    return blake2b(parent + struct.pack(f"<{len(tokens)}I", *tokens), digest_size=KEY_BYTES).digest()


@dataclass(slots=True, eq=False)
class Prefix:
    """What a full block holds: its own tokens, after those of its parent."""

    key: bytes
    tokens: list[int]
    parent: "Prefix | None"

    def continues(self, parent: "Prefix | None", tokens: list[int]) -> bool:
        """Tell whether this is `tokens` after `parent`, by the token ids themselves: equal keys prove nothing."""
        if self.tokens != tokens or not _same(self.parent, parent):
            return False
        self.parent = parent  # an evicted twin of `parent` is now compared, and kept alive, no more
        return True


class PrefixCache:
    """Finds the block that holds the KV of a run of tokens. Who uses a block, and when it goes, is not its business."""

    def __init__(self, block_size: int, key: Callable[[bytes, list[int]], bytes] = block_key) -> None:
        self._block_size = block_size
        self._key = key
        self._contents: dict[int, Prefix] = {}  # every full block, also those that hold the same as another
        self._blocks: dict[bytes, list[int]] = {}  # the blocks with a key; the first is the one to use

    def match(self, tokens: list[int], max_blocks: int) -> list[int]:
        """Return the blocks that hold the longest known prefix of `tokens`, at most `max_blocks`."""
        blocks: list[int] = []
        parent: Prefix | None = None
        for start in range(0, max_blocks * self._block_size, self._block_size):
            piece = tokens[start : start + self._block_size]
            known = self._blocks.get(self._key_after(parent, piece))
            if known is None or not self._contents[known[0]].continues(parent, piece):
                break
            parent = self._contents[known[0]]
            blocks.append(known[0])
        return blocks

    def insert(self, block: int, previous: int | None, tokens: list[int]) -> None:
        """Note that `block` holds the KV of `tokens` after what `previous`, noted before, holds."""
        parent = None if previous is None else self._contents[previous]
        prefix = Prefix(self._key_after(parent, tokens), tokens, parent)
        self._contents[block] = prefix
        self._blocks.setdefault(prefix.key, []).append(block)

    def key_of(self, block: int) -> bytes:
        """Return the key of what `block`, noted before, holds."""
        return self._contents[block].key

    def found_for(self, block: int) -> int | None:
        """Return the block that is found for what `block` holds: itself, or a twin; None: it holds nothing known."""
        prefix = self._contents.get(block)
        return None if prefix is None else self._blocks[prefix.key][0]

    def forget(self, block: int) -> bytes | None:
        """Drop `block`, whose contents are about to be overwritten; return the key, if any, that no block has now."""
        prefix = self._contents.pop(block, None)
        if prefix is None:
            return None
        blocks = self._blocks[prefix.key]
        blocks.remove(block)  # a twin takes its place
        if blocks:
            return None
        del self._blocks[prefix.key]
        return prefix.key

    def _key_after(self, parent: Prefix | None, tokens: list[int]) -> bytes:
        return self._key(ROOT_KEY if parent is None else parent.key, tokens)


def _same(one: Prefix | None, other: Prefix | None) -> bool:
    while one is not other:
        if one is None or other is None or one.tokens != other.tokens:
            return False
        one, other = one.parent, other.parent
    return True
