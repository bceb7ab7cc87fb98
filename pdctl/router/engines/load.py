"""How much each engine has to do, as the router's workers know it together."""

from itertools import count

_turns = count(1)


class Load:
    """What has been assigned to an engine and is not finished yet.

    With several workers, each writes its own numbers into the engine's row of the shared table, and reads all of them.
    """

    __slots__ = ("_all_requests", "_all_tokens", "_mine", "_requests", "_row", "_tokens", "assigned", "turn")

    def __init__(self, row: memoryview | None = None, worker: int = 0) -> None:
        self.assigned = 0  # requests since the start, by this worker
        self.turn = 0  # when it was assigned a request last; breaks ties, so that equals take turns
        self._requests = 0
        self._tokens = 0
        self._row = row  # [requests of worker 0, its tokens, requests of worker 1, ...]
        self._all_requests = None if row is None else row[::2]
        self._all_tokens = None if row is None else row[1::2]
        self._mine = 2 * worker

    @property
    def requests(self) -> int:
        """Requests at the engine."""
        return self._requests if self._all_requests is None else sum(self._all_requests)

    @property
    def tokens(self) -> int:
        """Tokens of their prompts, estimated."""
        return self._tokens if self._all_tokens is None else sum(self._all_tokens)

    def add(self, tokens: int) -> None:
        """Count a request that is being assigned."""
        self.assigned += 1
        self.turn = next(_turns)
        self._change(1, tokens)

    def remove(self, tokens: int) -> None:
        """Take a request off."""
        self._change(-1, -tokens)

    def _change(self, requests: int, tokens: int) -> None:
        self._requests += requests
        self._tokens += tokens
        if self._row is not None:
            self._row[self._mine] = self._requests
            self._row[self._mine + 1] = self._tokens
