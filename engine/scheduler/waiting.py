"""The queue of what needs blocks before anything else can happen to it."""

from collections import OrderedDict

from engine.scheduler.block_manager import BlockManager
from engine.scheduler.handoff import Reservation
from engine.scheduler.request import Sequence

Waiter = Sequence | Reservation


class WaitingQueue:
    """Sequences and reservations in the order in which they get their blocks. None of them owns a block."""

    def __init__(self, blocks: BlockManager, block_size: int) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._items: OrderedDict[Waiter, None] = OrderedDict()
        self._refused: Waiter | None = None  # the head, when it was last looked at,
        self._lacking = 0  # and how many blocks had to be free then

    def __len__(self) -> int:
        return len(self._items)

    def head(self) -> Waiter | None:
        """Return whose turn it is."""
        return next(iter(self._items), None)

    def append(self, item: Waiter) -> None:
        """Add to the end."""
        self._items[item] = None

    def put_first(self, item: Waiter) -> None:
        """Add to the front."""
        self._items[item] = None
        self._items.move_to_end(item, last=False)

    def discard(self, item: Waiter) -> bool:
        """Remove an item; tell whether it was there."""
        if item not in self._items:
            return False
        del self._items[item]
        return True

    def admit(self, headroom: int) -> bool:
        """Give the head the blocks of all its tokens and let it go, if `headroom` blocks stay free; else False.

        What the prefix cache holds counts as computed; a sequence's last token never does, as it has to be sampled.
        """
        item = next(iter(self._items))
        available = self._blocks.num_free - headroom
        if item is self._refused and available < self._lacking:
            return False  # decided without hashing its tokens in every step
        if not self._take_blocks(item, available):
            return False
        del self._items[item]
        return True

    def _take_blocks(self, item: Waiter, available: int) -> bool:
        tokens, matchable = _tokens(item)
        free = self._blocks.num_free
        matched = self._blocks.match(tokens, matchable // self._block_size)
        missing = -(-len(tokens) // self._block_size) - len(matched)
        lacking = missing + free - self._blocks.num_free  # matched blocks may have been free ones too
        if available < lacking:
            self._blocks.release(matched)
            self._refused, self._lacking = item, lacking
            return False
        item.block_table = matched + self._blocks.allocate(missing)
        _set_present(item, len(matched) * self._block_size)
        return True


def _tokens(item: Waiter) -> tuple[list[int], int]:
    """Return an item's tokens, and how many of them may come from the prefix cache."""
    if isinstance(item, Sequence):
        return item.tokens, len(item.tokens) - 1
    return item.prompt, len(item.prompt)


def _set_present(item: Waiter, num_tokens: int) -> None:
    if isinstance(item, Sequence):
        item.num_computed = num_tokens
    else:
        item.cached_tokens = num_tokens
