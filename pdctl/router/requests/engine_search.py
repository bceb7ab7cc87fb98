"""Finds engines for one request, again and again: those that have failed it are avoided."""

from pdctl.router.requests.ask import Ask
from pdctl.router.requests.body import Body
from pdctl.router.requests.selection import Choice, EnginesFullError, Pin, SelectionError, Selector


class EngineSearch:
    """One request's."""

    __slots__ = ("_ask", "_avoided", "_body", "_selector", "pin")

    def __init__(self, selector: Selector, body: Body, session: bytes, pin: Pin | None) -> None:
        self.pin = pin  # the engines that the request itself asks for
        self._selector = selector
        self._body = body
        self._ask = Ask(body.tokens, session, body.prompt)
        self._avoided: tuple[str, ...] = ()  # the last that failed it comes last

    def choose(self) -> Choice:
        """Engines for the next attempt. EnginesFullError if it has to wait, SelectionError if there are none."""
        if self.pin is not None:
            return self._selector.pinned(self._body, self.pin)
        try:
            return self._selector.choose(self._body, self._ask, self._avoided)
        except SelectionError:
            if len(self._avoided) < 2:
                raise
            # All but the last may have come back.
            return self._selector.choose(self._body, self._ask, self._avoided[-1:])

    def take(self, choice: Choice) -> int:
        """Note that engines have got the request; how much of the prompt they are expected to hold already."""
        return self._selector.assigned(choice.pair, self._ask)

    def avoid(self, culprit: str) -> None:
        """Leave out an engine that has failed the request, as long as there are others."""
        self._avoided = (*(key for key in self._avoided if key != culprit), culprit)

    def forgive(self) -> None:
        """Leave out none any more."""
        self._avoided = ()

    def can_do_without(self, key: str) -> bool:
        """Whether other engines could take the request now."""
        try:
            self._selector.choose(self._body, self._ask, (key,))
        except (SelectionError, EnginesFullError):
            return False
        return True
