"""A running engine core whose steps a test lets through."""

import itertools
import queue
import threading
from collections.abc import Callable

from engine.core import EngineCore, Prefilled, Reservation
from engine.scheduler.batch import Batch
from engine.scheduler.request import Request, Token
from tests.engine.scheduler.fake_runner import FakeRunner, expected
from tests.engine.scheduler.rig import make_request

TIMEOUT_S = 10.0
MAX_MODEL_LEN = 64


class GatedRunner(FakeRunner):
    """Computes a step when it is let through, or at once while the gate is open; or fails."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks=num_blocks)
        self.gate: threading.Semaphore | None = None
        self.entered: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self.error: BaseException | None = None

    def execute(self, batch: Batch) -> list[list[int]]:
        self.entered.put(batch)
        if self.gate is not None and not self.gate.acquire(timeout=TIMEOUT_S):
            raise TimeoutError("no test let the step through")
        if self.error is not None:
            raise self.error
        return super().execute(batch)


class Served:
    """A running core, and what its callbacks got."""

    def __init__(self, num_blocks: int = 32, max_num_seqs: int = 4, hold: bool = True) -> None:
        self._counter = itertools.count()
        self.runner = GatedRunner(num_blocks)
        self.tokens: queue.SimpleQueue[list[Token]] = queue.SimpleQueue()
        self.prefilled: queue.SimpleQueue[Prefilled] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.core = EngineCore(
            self.runner,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=8,
            max_model_len=MAX_MODEL_LEN,
            on_tokens=self.tokens.put,
            on_prefilled=self.prefilled.put if hold else None,
            on_failure=self.failures.put,
        )

    def close_gate(self) -> threading.Semaphore:
        self.runner.gate = threading.Semaphore(0)
        return self.runner.gate

    def collect(self, *requests: Request) -> dict[tuple[str, int], list[Token]]:
        """Wait until each choice of the requests has ended; return all tokens by choice."""
        answers: dict[tuple[str, int], list[Token]] = {}
        open_choices = {(request.request_id, index) for request in requests for index in range(request.sampling.n)}
        while open_choices:
            for token in self.tokens.get(timeout=TIMEOUT_S):
                answers.setdefault((token.request_id, token.index), []).append(token)
                if token.finish_reason:
                    open_choices.remove((token.request_id, token.index))
        return answers

    def assert_right(self, *requests: Request) -> None:
        answers = self.collect(*requests)
        for request in requests:
            for index in range(request.sampling.n):
                tokens, reason = expected(request, index, MAX_MODEL_LEN)
                answer = answers[request.request_id, index]
                assert [token.token_id for token in answer] == tokens
                assert answer[-1].finish_reason == reason

    def reserve(self, name: str, prompt: list[int]) -> Reservation:
        return self.core.reserve(name, prompt).result(TIMEOUT_S)

    def receive(self, reservation: Reservation) -> None:
        prompt = reservation.prompt
        self.runner.write(prompt, reservation.block_table, reservation.cached_tokens, len(prompt))

    def settle(self) -> None:
        """Wait until all commands given so far are done: the answer to a later request has come."""
        request = make_request(f"settle-{next(self._counter)}", [6], max_tokens=1)
        self.core.submit(request)
        self.collect(request)


Serve = Callable[..., Served]
