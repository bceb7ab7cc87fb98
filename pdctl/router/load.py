"""How much each engine has to do, as the router knows it."""

from dataclasses import dataclass
from itertools import count

_turns = count(1)


@dataclass(slots=True)
class Load:
    """What has been assigned to an engine and is not finished yet."""

    requests: int = 0
    tokens: int = 0  # of their prompts, estimated
    assigned: int = 0  # requests since the start
    turn: int = 0  # when it was assigned a request last; breaks ties, so that equals take turns


class Assignment:
    """One request's part of an engine's load, from its creation to its release."""

    __slots__ = ("_load", "_tokens")

    def __init__(self, load: Load, tokens: int) -> None:
        load.requests += 1
        load.tokens += tokens
        load.assigned += 1
        load.turn = next(_turns)
        self._load: Load | None = load
        self._tokens = tokens

    def release(self) -> None:
        """Take the request off the engine's load; only the first call counts."""
        load, self._load = self._load, None
        if load is not None:
            load.requests -= 1
            load.tokens -= self._tokens
