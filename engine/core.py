"""The engine core: one thread that owns the scheduler and the runner, and computes step after step."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic

from engine.errors import EngineError, RequestError, TransferError
from engine.scheduler.batch import Runner
from engine.scheduler.handoff import Prefilled, Reservation
from engine.scheduler.held_text import HeldText
from engine.scheduler.limits import Limits
from engine.scheduler.request import Request, Token
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.stats import CoreStats

__all__ = ["CoreStats", "EngineCore", "Prefilled", "Reservation"]

STOP_TIMEOUT_S = 30.0


class EngineCore:
    """Takes requests from any thread and computes them in its own. The callbacks run in its thread, and must not block.

    `on_tokens` gets the tokens of one step. `on_prefilled` gets the progress of requests submitted with `hold`, in
    order. `on_failure` gets, once, the error that ended the thread: nothing is computed after it.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_model_len: int,
        prefix_caching: bool = True,
        on_tokens: Callable[[list[Token]], None],
        on_prefilled: Callable[[Prefilled], None] | None = None,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._runner = runner
        self._limits = Limits(runner.block_size, runner.num_blocks, max_num_seqs, max_batched_tokens, max_model_len)
        self._scheduler = Scheduler(self._limits, prefix_caching=prefix_caching, on_end=self._forget)
        self._on_tokens = on_tokens
        self._on_prefilled = on_prefilled
        self._on_failure = on_failure
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._stopping = False  # the thread's own; told by a command
        self._step_began: float | None = None
        self._stats = self._scheduler.stats()  # replaced as a whole, never changed
        self._lock = threading.Lock()  # guards what follows: what callers have in hand
        self._closed = False
        self._ids: set[str] = set()
        self._futures: dict[str, Future[Reservation]] = {}  # reservations not yet granted
        self._granted: set[Reservation] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """End the thread after the step in progress, or raise EngineError. Waiting reservations fail."""
        if self._thread.ident is None:
            return
        self._commands.put(self._stop)
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise EngineError(f"the engine core has not finished its step within {timeout:g} s of being told to stop")

    def check(self, request: Request) -> None:
        """Raise RequestError where the request can never be computed here."""
        self._limits.check_request(request.prompt, request.sampling.n)

    def submit(self, request: Request, *, hold: bool = False) -> None:
        """Compute a request. Raise RequestError, at once, where it can never fit or its id is in use.

        With `hold` (prefill role) only the prompt is computed, and the first token of each choice: `on_prefilled` tells
        of them. The blocks stay owned until release(), which must come, also after an abort.
        """
        if hold and self._on_prefilled is None:
            raise ValueError("a request can be held only by a core with on_prefilled")
        self.check(request)
        self._claim(request.request_id)
        self._commands.put(partial(self._scheduler.submit, request, hold=hold))

    def abort(self, request_id: str) -> None:
        """End a request at any stage; an unknown one is ignored. What a transfer may still use stays owned:

        a held request's blocks until release(), a granted reservation's until start_decode() or cancel_reservation().
        """
        with self._lock:
            future = self._futures.get(request_id)
        if future is not None:
            future.cancel()
        self._commands.put(partial(self._scheduler.abort, request_id))

    def release(self, request_id: str) -> None:
        """Free a held request's blocks: no transfer reads them any more. One still being computed is aborted."""
        self._commands.put(partial(self._scheduler.release, request_id))

    def reserve(self, request_id: str, prompt: list[int]) -> Future[Reservation]:
        """Ask for the blocks of a prompt whose KV a peer writes; granted in order with all other work.

        The future fails with RequestError where the prompt can never fit. Its cancel() gives up the place; where that
        returns False, the result is there, and the caller owes start_decode() or cancel_reservation(). Cancelling what
        asyncio.wrap_future() makes of it may come too late unnoticed: call cancel() on the future itself as well.
        """
        future: Future[Reservation] = Future()
        try:
            self._limits.check_request(prompt)
            self._claim(request_id, future)
        except RequestError as error:
            future.set_exception(error)
            return future
        future.add_done_callback(partial(self._on_future_done, request_id))
        self._commands.put(
            partial(self._scheduler.reserve, Reservation(request_id, prompt), partial(self._grant, future))
        )
        return future

    def start_decode(self, request: Request, reservation: Reservation, first_tokens: list[int]) -> None:
        """Decode a request whose whole prompt's KV is in the reservation's blocks, after a first token per choice.

        The first tokens go to `on_tokens` before anything else of the request. Raises TransferError, with the
        reservation unchanged, where the tokens do not fit the request.
        """
        if len(first_tokens) != request.sampling.n:
            raise TransferError(f"{len(first_tokens)} first tokens came for a request of {request.sampling.n} choices")
        if (request.request_id, request.prompt) != (reservation.request_id, reservation.prompt):
            raise ValueError(f"the reservation of {reservation.request_id} is not for {request.request_id}'s prompt")
        if self._closed:
            raise _closed_error()
        if not self._consume(reservation):
            raise ValueError(f"the reservation of {reservation.request_id} was used or cancelled before")
        self._commands.put(partial(self._start_decode, request, reservation, list(first_tokens)))

    def cancel_reservation(self, reservation: Reservation) -> None:
        """Give the blocks back. The caller guarantees that nobody writes them any more. Idempotent."""
        if self._consume(reservation):
            self._commands.put(partial(self._scheduler.cancel_reservation, reservation))

    def stats(self) -> CoreStats:
        """Return the state after the last step or command."""
        return self._stats

    @property
    def held_text(self) -> HeldText:
        """What the prefix cache holds, in the words of the requests."""
        return self._scheduler.held_text

    @property
    def busy_s(self) -> float:
        """How long the step in progress has taken so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else monotonic() - began

    def _claim(self, request_id: str, future: Future[Reservation] | None = None) -> None:
        with self._lock:
            if self._closed:
                raise _closed_error()
            if request_id in self._ids:
                raise RequestError(f"A request with the id {request_id} is being served.", status=409)
            self._ids.add(request_id)
            if future is not None:
                self._futures[request_id] = future

    def _consume(self, reservation: Reservation) -> bool:
        with self._lock:
            if reservation not in self._granted:
                return False
            self._granted.remove(reservation)
            return True

    def _on_future_done(self, request_id: str, future: Future[Reservation]) -> None:
        if future.cancelled():
            self._commands.put(partial(self._scheduler.abort, request_id))

    # From here on: in the core's own thread.

    def _run(self) -> None:
        try:
            while self._drain():
                self._step()
        except BaseException as error:  # handed on whole: on_failure ends the process
            self._close()
            self._on_failure(error)
        else:
            self._close()

    def _drain(self) -> bool:
        while not self._commands.empty():
            self._commands.get()()
        return not self._stopping

    def _step(self) -> None:
        batch = self._scheduler.schedule()
        self._stats = self._scheduler.stats()
        if batch is None:
            self._commands.get()()  # nothing can be computed until somebody asks for something
            return
        self._step_began = monotonic()
        sampled = self._runner.execute(batch)
        self._step_began = None
        outcome = self._scheduler.complete(batch, sampled)
        self._stats = self._scheduler.stats()
        if outcome.tokens:
            self._on_tokens(outcome.tokens)
        if self._on_prefilled is not None:
            for event in outcome.prefilled:
                self._on_prefilled(event)

    def _start_decode(self, request: Request, reservation: Reservation, first_tokens: list[int]) -> None:
        tokens = self._scheduler.start_decode(request, reservation, first_tokens)
        self._stats = self._scheduler.stats()
        if tokens:
            self._on_tokens(tokens)

    def _grant(self, future: Future[Reservation], reservation: Reservation) -> bool:
        if not future.set_running_or_notify_cancel():
            return False
        with self._lock:
            del self._futures[reservation.request_id]
            self._granted.add(reservation)
        future.set_result(reservation)
        return True

    def _forget(self, request_id: str) -> None:
        with self._lock:
            self._ids.discard(request_id)
            self._futures.pop(request_id, None)

    def _stop(self) -> None:
        self._stopping = True

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(_closed_error())


def _closed_error() -> RequestError:
    return RequestError("The engine is shutting down; send the request to another one.", status=503)
