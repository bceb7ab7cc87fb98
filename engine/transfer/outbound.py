"""One request's KV on its way out of a prefill engine."""

import asyncio
import secrets

from engine.errors import TransferError
from engine.scheduler.handoff import Prefilled
from engine.transfer.wire import Granted


class Outbound:
    """What decode, the core and the connection have said so far about a request whose KV is being delivered."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.nonce = secrets.randbits(63)
        # Unique in the core, so that a late event of an aborted attempt is never taken for one of the next.
        self.core_id = f"{request_id}/{self.nonce:016x}"
        self.grant: Granted | None = None
        self.progress: Prefilled | None = None
        self.abort_asked = False
        self._failure: TransferError | None = None
        self._news = asyncio.Event()

    def on_granted(self, grant: Granted) -> None:
        """Decode has reserved the blocks."""
        self.grant = grant
        self._news.set()

    def on_prefilled(self, progress: Prefilled) -> None:
        """The core has computed a further chunk."""
        self.progress = progress
        self._news.set()

    def on_abort(self, error: TransferError) -> None:
        """Decode has asked us to stop; it waits for quiet."""
        self.abort_asked = True
        self.fail(error)

    def fail(self, error: TransferError) -> None:
        """The transfer cannot go on. The first error counts: later ones follow from it."""
        self._failure = self._failure or error
        self._news.set()

    async def granted(self) -> Granted:
        """Wait for decode's blocks. Raises TransferError."""
        while self.grant is None:
            await self._wait()
        return self.grant

    async def computed(self, tokens: int) -> Prefilled:
        """Wait until the core has computed that many tokens, or the whole prompt. Raises TransferError."""
        while self.progress is None or (self.progress.end < tokens and self.progress.first_tokens is None):
            await self._wait()
        self.check()
        return self.progress

    def check(self) -> None:
        """Raise the TransferError that the transfer has failed with, if any."""
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()
        self.check()
