"""Any order of what callers do: every output is right, every block has its owners, and in the end all is free."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.scheduler.batch import Batch
from engine.scheduler.handoff import Prefilled, Reservation
from engine.scheduler.limits import Limits
from engine.scheduler.request import FinishReason, Request, SamplingParams, Token
from engine.scheduler.scheduler import Outcome, Scheduler
from tests.engine.scheduler.fake_runner import VOCABULARY, FakeRunner, expected, first_tokens

BLOCK_SIZE = 4
MAX_MODEL_LEN = 40
MAX_STEPS = 3000

# Few different prompts with long common beginnings, so that the prefix cache is hit all the time.
prompts = st.builds(
    lambda base, length, tail: ([base] * 24)[:length] + tail,
    st.integers(0, 1),
    st.integers(0, 24),
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 20),
    n=st.integers(1, 3),
    stop_token_ids=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=1),
)


@dataclass
class Known:
    """A request as its callers see it."""

    request: Request
    answers: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    aborted: bool = False
    ended: bool = False
    hold: bool = False
    events: list[Prefilled] = field(default_factory=list)
    reservation: Reservation | None = None  # granted, not yet started or cancelled
    queues: bool = False  # for a reservation


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}

    @initialize(
        num_blocks=st.integers(3, 24),
        max_num_seqs=st.integers(3, 6),
        extra_budget=st.integers(0, 20),
        prefix_caching=st.booleans(),
    )
    def set_up(self, num_blocks: int, max_num_seqs: int, extra_budget: int, prefix_caching: bool) -> None:
        self.limits = Limits(BLOCK_SIZE, num_blocks, max_num_seqs, max_num_seqs + extra_budget, MAX_MODEL_LEN)
        self.scheduler = Scheduler(self.limits, prefix_caching=prefix_caching, on_end=self._on_end)
        self.runner = FakeRunner(BLOCK_SIZE, num_blocks)

    @rule(prompt=prompts, sampling=samplings, hold=st.booleans())
    def submit(self, prompt: list[int], sampling: SamplingParams, hold: bool) -> None:
        if self._fits(prompt):
            known = self._new(prompt, sampling)
            known.hold = hold
            self.scheduler.submit(known.request, hold=hold)

    @rule(prompt=prompts, sampling=samplings)
    def reserve(self, prompt: list[int], sampling: SamplingParams) -> None:
        if self._fits(prompt):
            known = self._new(prompt, sampling)
            known.queues = True
            self.scheduler.reserve(Reservation(known.request.request_id, known.request.prompt), self._grant)

    @rule(data=st.data(), complete=st.booleans())
    def start_decode(self, data: st.DataObject, complete: bool) -> None:
        """A peer writes the KV, as late as possible; with `complete` False it dies on the way."""
        known = self._pick(data, [known for known in self.known.values() if known.reservation])
        if known is not None:
            self._end_transfer(known, complete)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        known = self._pick(data, list(self.known.values()))
        if known is not None:
            known.aborted |= not known.ended
            self.scheduler.abort(known.request.request_id)

    @rule(data=st.data())
    def give_up_place(self, data: st.DataObject) -> None:
        known = self._pick(data, [known for known in self.known.values() if known.queues and not known.ended])
        if known is not None:
            known.aborted = True  # the scheduler notices when its turn comes

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        known = self._pick(data, [known for known in self.known.values() if known.hold and not known.ended])
        if known is not None:
            self._release(known)

    @rule()
    def release_unknown(self) -> None:
        self.scheduler.release("nobody")
        self.scheduler.abort("nobody")

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    @invariant()
    @precondition(lambda self: hasattr(self, "scheduler"))
    def every_block_has_its_owners(self) -> None:
        self.scheduler.check()
        for known in self.known.values():
            if known.hold and not known.ended and known.events:
                last = known.events[-1]  # a transfer may read until release()
                assert self.runner.holds(known.request.prompt, last.block_table, last.end)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(MAX_STEPS):
            if not self._step() and not self._let_go_of_one():
                break
        self.scheduler.check()
        for known in self.known.values():
            assert known.ended, f"{known.request.request_id} never ended"
            self._check_answers(known)
        stats = self.scheduler.stats()
        assert stats[:4] == (0, 0, 0, 0)
        assert stats.blocks_free == stats.blocks_total
        assert stats.generated_tokens == sum(
            len(answer) for known in self.known.values() for answer in known.answers.values()
        )

    def _fits(self, prompt: list[int]) -> bool:
        return self.limits.blocks_for(len(prompt)) <= self.limits.num_blocks

    def _new(self, prompt: list[int], sampling: SamplingParams) -> Known:
        known = Known(Request(f"r{len(self.known)}", prompt, sampling))
        self.known[known.request.request_id] = known
        return known

    def _pick(self, data: st.DataObject, candidates: list[Known]) -> Known | None:
        return data.draw(st.sampled_from(candidates)) if candidates else None

    def _grant(self, reservation: Reservation) -> bool:
        known = self.known[reservation.request_id]
        known.queues = False
        if not known.aborted:
            known.reservation = reservation
        return not known.aborted

    def _on_end(self, request_id: str) -> None:
        known = self.known[request_id]
        assert not known.ended
        assert known.reservation is None, "a reservation ended that its holder has not given back"
        known.ended = True

    def _end_transfer(self, known: Known, complete: bool) -> None:
        reservation, known.reservation = known.reservation, None
        assert reservation is not None
        prompt = known.request.prompt
        assert self.runner.holds(prompt, reservation.block_table, reservation.cached_tokens)
        end = len(prompt) if complete else (reservation.cached_tokens + len(prompt)) // 2
        self.runner.write(prompt, reservation.block_table, reservation.cached_tokens, end)
        if complete:
            self._take(self.scheduler.start_decode(known.request, reservation, first_tokens(known.request)))
        else:
            known.aborted = True
            self.scheduler.cancel_reservation(reservation)

    def _release(self, known: Known) -> None:
        if not known.events or known.events[-1].first_tokens is None:
            known.aborted = True
        self.scheduler.release(known.request.request_id)
        assert known.ended

    def _let_go_of_one(self) -> bool:
        """Nothing can be computed: end the oldest transfer, well or badly. False where there is none."""
        for number, known in enumerate(self.known.values()):
            if known.reservation is not None:
                self._end_transfer(known, complete=number % 3 > 0)
                return True
            if known.hold and not known.ended and (known.aborted or known.events):
                self._release(known)
                return True
        return False

    def _step(self) -> bool:
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        self._check_batch(batch)
        outcome = self.scheduler.complete(batch, self.runner.execute(batch))
        self._take_outcome(outcome)
        self.scheduler.check()
        return True

    def _check_batch(self, batch: Batch) -> None:
        assert sum(chunk.length for chunk in batch.chunks) <= self.limits.max_batched_tokens
        assert len(batch.chunks) <= self.limits.max_num_seqs
        foreign = {
            block for known in self.known.values() if known.reservation for block in known.reservation.block_table
        }
        for chunk in batch.chunks:
            known = self.known[chunk.sequence.request.request_id]
            assert not known.aborted, "an aborted request is computed"
            first, last = chunk.start // BLOCK_SIZE, (chunk.start + chunk.length - 1) // BLOCK_SIZE
            assert not foreign & set(chunk.sequence.block_table[first : last + 1]), "a reserved block is written"
        assert not foreign & {destination for _, destination in batch.copies}

    def _take_outcome(self, outcome: Outcome) -> None:
        self._take(outcome.tokens)
        for event in outcome.prefilled:
            known = self.known[event.request_id]
            assert known.hold
            assert event.start == (known.events[-1].end if known.events else 0)
            assert all(event.block_table == before.block_table for before in known.events)
            assert self.runner.holds(known.request.prompt, event.block_table, event.end)
            whole = event.end == len(known.request.prompt)
            assert event.first_tokens == (first_tokens(known.request) if whole else None)
            known.events.append(event)

    def _take(self, tokens: list[Token]) -> None:
        for token in tokens:
            known = self.known[token.request_id]
            assert not known.hold
            assert token.index not in known.reasons, "a token after the end"
            known.answers.setdefault(token.index, []).append(token.token_id)
            if token.finish_reason:
                known.reasons[token.index] = token.finish_reason

    def _check_answers(self, known: Known) -> None:
        if known.hold:
            return
        for index in range(known.request.sampling.n):
            answer, reason = expected(known.request, index, self.limits.max_length)
            got = known.answers.get(index, [])
            assert got == answer[: len(got)]
            if not known.aborted:
                assert got == answer
                assert known.reasons[index] == reason


@pytest.mark.parametrize("steps", [15, 50])
def test_scheduler_in_any_order(steps: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=2000 // steps,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
