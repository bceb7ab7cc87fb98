"""A scheduler with a fake runner, and all that came out of them."""

from collections.abc import Callable

from engine.scheduler.batch import Batch
from engine.scheduler.handoff import Prefilled, Reservation
from engine.scheduler.limits import Limits
from engine.scheduler.request import FinishReason, Request, SamplingParams, Token
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.stats import CoreStats
from tests.engine.scheduler.fake_runner import FakeRunner, expected, first_tokens

LIMITS = Limits(block_size=4, num_blocks=16, max_num_seqs=4, max_batched_tokens=8, max_model_len=100)


def make_request(name: str, prompt: list[int], max_tokens: int = 1000, **sampling: object) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, **sampling))  # type: ignore[arg-type]


class Rig:
    def __init__(self, prefix_caching: bool = True, **limits: int) -> None:
        self.limits = LIMITS._replace(**limits)
        self.ended: list[str] = []
        self.scheduler = Scheduler(self.limits, prefix_caching=prefix_caching, on_end=self.ended.append)
        self.runner = FakeRunner(self.limits.block_size, self.limits.num_blocks)
        self.tokens: list[Token] = []
        self.prefilled: list[Prefilled] = []
        self.granted: list[Reservation] = []

    @property
    def stats(self) -> CoreStats:
        return self.scheduler.stats()

    def submit(self, name: str, prompt: list[int], max_tokens: int = 1000, **sampling: object) -> Request:
        request = make_request(name, prompt, max_tokens, **sampling)
        self.scheduler.submit(request)
        return request

    def hold(self, name: str, prompt: list[int], n: int = 1) -> Request:
        request = make_request(name, prompt, n=n)
        self.scheduler.submit(request, hold=True)
        return request

    def step(self) -> Batch | None:
        batch = self.scheduler.schedule()
        if batch is not None:
            outcome = self.scheduler.complete(batch, self.runner.execute(batch))
            self.tokens += outcome.tokens
            self.prefilled += outcome.prefilled
        self.scheduler.check()
        return batch

    def run(self) -> None:
        while self.step() is not None:
            pass

    def shape(self) -> list[tuple[str, int, int]]:
        """Run a step; return the request, start and length of each chunk."""
        batch = self.step()
        assert batch is not None
        return [(chunk.sequence.request.request_id, chunk.start, chunk.length) for chunk in batch.chunks]

    def ask(self, name: str, prompt: list[int], wanted: bool = True) -> None:
        """Queue for a reservation."""
        self.scheduler.reserve(Reservation(name, prompt), self._granter(wanted))

    def reserve(self, name: str, prompt: list[int]) -> Reservation:
        """Queue for a reservation, which the next step grants."""
        self.ask(name, prompt)
        self.step()
        assert self.granted[-1].request_id == name
        return self.granted[-1]

    def receive(self, reservation: Reservation) -> None:
        """Write what a peer sends."""
        prompt = reservation.prompt
        self.runner.write(prompt, reservation.block_table, reservation.cached_tokens, len(prompt))

    def decode(self, request: Request, reservation: Reservation) -> None:
        self.receive(reservation)
        self.tokens += self.scheduler.start_decode(request, reservation, first_tokens(request))

    def answer(self, name: str, index: int = 0) -> tuple[list[int], FinishReason | None]:
        tokens = [token for token in self.tokens if (token.request_id, token.index) == (name, index)]
        assert not any(token.finish_reason for token in tokens[:-1])
        return [token.token_id for token in tokens], tokens[-1].finish_reason

    def assert_right(self, *requests: Request) -> None:
        """Check all answers to the requests against those that each would get alone."""
        for request in requests:
            for index in range(request.sampling.n):
                assert self.answer(request.request_id, index) == expected(request, index, self.limits.max_length)

    def _granter(self, wanted: bool) -> Callable[[Reservation], bool]:
        def grant(reservation: Reservation) -> bool:
            self.granted.append(reservation)
            return wanted

        return grant
