"""The engine core's thread: what callers of any thread can rely on."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

import pytest

from engine.core import EngineCore, Prefilled, Reservation
from engine.errors import EngineError, RequestError, TransferError
from engine.scheduler.batch import Batch
from engine.scheduler.request import FinishReason, Request, Token
from engine.scheduler.scheduler import Scheduler
from tests.engine.scheduler.fake_runner import FakeRunner, expected, first_tokens
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


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(**options: int) -> Served:
        served = Served(**options)
        served.core.start()
        started.append(served)
        return served

    yield start
    for served in started:
        if served.runner.gate is not None:
            served.runner.gate.release(1000)
        served.core.stop(TIMEOUT_S)


Serve = Callable[..., Served]


def test_requests_from_many_threads_are_answered_right(serve: Serve) -> None:
    served = serve()
    requests = [make_request(f"r{i}", [i % 3] * (1 + i % 11), max_tokens=1 + i % 7, n=1 + i % 3) for i in range(24)]
    threads = [threading.Thread(target=served.core.submit, args=[request]) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    served.assert_right(*requests)
    stats = served.core.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
    assert stats.generated_tokens == sum(len(expected(r, i, 64)[0]) for r in requests for i in range(r.sampling.n))
    assert stats.prompt_tokens == sum(len(request.prompt) for request in requests)


def test_tokens_of_one_step_come_together(serve: Serve) -> None:
    served = serve()
    gate = served.close_gate()
    served.core.submit(make_request("first", [1], max_tokens=2))
    served.runner.entered.get(timeout=TIMEOUT_S)
    served.core.submit(make_request("second", [2], max_tokens=1))
    gate.release(2)
    assert [token.request_id for token in served.tokens.get(timeout=TIMEOUT_S)] == ["first"]
    assert [token.request_id for token in served.tokens.get(timeout=TIMEOUT_S)] == ["first", "second"]


def test_an_idle_core_waits_for_a_command_and_does_nothing_meanwhile(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    schedule = Scheduler.schedule
    monkeypatch.setattr(Scheduler, "schedule", lambda self: looks.append(1) or schedule(self))
    served = serve(num_blocks=4)
    reservation = served.reserve("a", [1] * 16)
    waiting = served.core.reserve("b", [2] * 16)  # work that waits must not keep the thread busy either
    served.core._thread.join(timeout=0.2)
    assert len(looks) < 10
    served.core.cancel_reservation(reservation)
    assert waiting.result(TIMEOUT_S).request_id == "b"


def test_what_can_never_fit_is_refused_in_the_callers_thread(serve: Serve) -> None:
    served = serve(num_blocks=4)
    with pytest.raises(RequestError, match="5 KV blocks"):
        served.core.submit(make_request("a", [1] * 17))
    with pytest.raises(RequestError, match="n is 5"):
        served.core.submit(make_request("a", [1], n=5))
    with pytest.raises(RequestError, match="5 KV blocks"):
        served.core.reserve("a", [1] * 17).result(0)
    served.core.submit(make_request("a", [1], max_tokens=1))  # the id was not taken
    assert served.tokens.get(timeout=TIMEOUT_S)[0].request_id == "a"


def test_an_id_is_in_use_until_nothing_of_its_request_is_left(serve: Serve) -> None:
    served = serve()
    gate = served.close_gate()
    request = make_request("a", [1], max_tokens=1)
    served.core.submit(request)
    with pytest.raises(RequestError, match="id a") as refusal:
        served.core.submit(request)
    assert refusal.value.status == 409
    with pytest.raises(RequestError, match="id a"):
        served.core.reserve("a", [1]).result(0)
    gate.release(100)
    served.collect(request)
    served.core.submit(request)
    served.collect(request)


def test_an_abort_ends_a_request_between_steps(serve: Serve) -> None:
    served = serve()
    gate = served.close_gate()
    served.core.submit(make_request("a", [1]))
    served.runner.entered.get(timeout=TIMEOUT_S)
    served.core.abort("a")
    served.core.abort("a")
    served.core.abort("nobody")
    gate.release(100)
    served.settle()
    stats = served.core.stats()
    assert (stats.running, stats.blocks_free) == (0, stats.blocks_total)
    assert len(served.runner.batches) == 2


def test_held_prompts_tell_of_each_chunk_in_order_and_stay_until_release(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 18, n=2)
    served.core.submit(request, hold=True)
    events = [served.prefilled.get(timeout=TIMEOUT_S) for _ in range(3)]
    assert [(event.start, event.end) for event in events] == [(0, 8), (8, 16), (16, 18)]
    assert [event.first_tokens for event in events] == [None, None, first_tokens(request)]
    assert served.core.stats().held == 1
    served.core.abort("a")
    served.settle()
    assert served.core.stats().blocks_free == 32 - 5
    served.core.release("a")
    served.settle()
    assert (served.core.stats().held, served.core.stats().blocks_free) == (0, 32)


def test_holding_needs_somebody_to_be_told(serve: Serve) -> None:
    with pytest.raises(ValueError, match="on_prefilled"):
        serve(hold=False).core.submit(make_request("a", [1]), hold=True)


def test_a_reservation_is_decoded(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 10, max_tokens=6, n=2)
    reservation = served.reserve("a", request.prompt)
    assert (reservation.request_id, reservation.prompt, reservation.cached_tokens) == ("a", request.prompt, 0)
    assert len(reservation.block_table) == 3
    assert served.core.stats().reserved == 1
    served.receive(reservation)
    served.core.start_decode(request, reservation, first_tokens(request))
    assert [token.token_id for token in served.tokens.get(timeout=TIMEOUT_S)] == first_tokens(request)
    served.collect(request)
    stats = served.core.stats()
    assert (stats.kv_transfer, stats.local_compute, stats.reserved, stats.blocks_free) == (10, 0, 0, 32)


def test_a_reservation_is_used_once(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 10, max_tokens=2)
    reservation = served.reserve("a", request.prompt)
    with pytest.raises(TransferError, match="2 first tokens came for a request of 1 choices"):
        served.core.start_decode(request, reservation, [1, 2])
    with pytest.raises(ValueError, match="not for b's prompt"):
        served.core.start_decode(make_request("b", [1] * 10), reservation, [1])
    with pytest.raises(ValueError, match="not for a's prompt"):
        served.core.start_decode(make_request("a", [2] * 10), reservation, [1])
    served.receive(reservation)
    served.core.start_decode(request, reservation, first_tokens(request))
    with pytest.raises(ValueError, match="used or cancelled before"):
        served.core.start_decode(request, reservation, first_tokens(request))
    served.core.cancel_reservation(reservation)
    served.assert_right(request)


def test_a_cancelled_reservation_cannot_be_decoded(serve: Serve) -> None:
    served = serve()
    reservation = served.reserve("a", [1] * 10)
    served.core.cancel_reservation(reservation)
    served.core.cancel_reservation(reservation)
    with pytest.raises(ValueError, match="used or cancelled before"):
        served.core.start_decode(make_request("a", [1] * 10), reservation, [1])
    served.settle()
    assert served.core.stats().blocks_free == 32


def test_reservations_wait_in_order_and_give_up_their_place(serve: Serve) -> None:
    served = serve(num_blocks=4)
    first = served.reserve("a", [1] * 16)
    second, third = served.core.reserve("b", [2] * 16), served.core.reserve("c", [3] * 4)
    fourth = served.core.reserve("d", [4] * 4)
    assert second.cancel()
    served.core.abort("c")
    with pytest.raises(CancelledError):
        third.result(TIMEOUT_S)
    served.core.cancel_reservation(first)
    assert fourth.result(TIMEOUT_S).request_id == "d"
    assert not fourth.cancel()
    served.core.cancel_reservation(fourth.result(0))
    for name in "abcd":
        served.core.cancel_reservation(served.reserve(name, [5] * 16))


def test_a_place_given_up_holds_nobody_back(serve: Serve) -> None:
    served = serve(num_blocks=6)
    served.reserve("a", [1] * 16)
    assert served.core.reserve("b", [2] * 16).cancel()
    served.settle()  # by a request that needs the one block that is not kept for a to grow, after b in the queue
    assert served.core.stats().waiting == 0


def test_blocks_granted_to_a_future_cancelled_just_before_go_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures: list[Future[Reservation]] = []
    schedule = Scheduler.schedule

    def cancel_and_schedule(scheduler: Scheduler) -> Batch | None:
        for future in futures:
            future.cancel()
        return schedule(scheduler)

    monkeypatch.setattr(Scheduler, "schedule", cancel_and_schedule)
    served = serve()
    gate = served.close_gate()
    request = make_request("a", [1], max_tokens=1)
    served.core.submit(request)
    served.runner.entered.get(timeout=TIMEOUT_S)
    futures.append(served.core.reserve("b", [2] * 16))  # cancelled after its command was taken, before it is granted
    gate.release(100)
    served.collect(request)
    served.settle()
    assert futures[0].cancelled()
    stats = served.core.stats()
    assert (stats.reserved, stats.blocks_free) == (0, stats.blocks_total)


def test_a_future_cancelled_in_the_same_moment_as_granted_is_one_or_the_other(serve: Serve) -> None:
    served = serve(num_blocks=4)
    for turn in range(200):
        future = served.core.reserve(f"r{turn}", [turn % 5] * 16)
        if not future.cancel():
            served.core.cancel_reservation(future.result(TIMEOUT_S))
    served.settle()
    stats = served.core.stats()
    assert (stats.waiting, stats.reserved, stats.blocks_free) == (0, 0, 4)


async def test_a_task_that_leaves_gives_up_its_place_or_gives_back_its_blocks(serve: Serve) -> None:
    served = serve(num_blocks=4)

    async def reserve_and_leave(future: Future[Reservation]) -> None:
        try:
            await asyncio.wrap_future(future)
        finally:
            if not future.cancel():
                served.core.cancel_reservation(future.result(TIMEOUT_S))

    for turn in range(50):
        first = await asyncio.wrap_future(served.core.reserve(f"first-{turn}", [1] * 16))
        task = asyncio.create_task(reserve_and_leave(served.core.reserve(f"second-{turn}", [2] * 16)))
        await asyncio.wait([task], timeout=0)
        served.core.cancel_reservation(first)  # races with the next line
        task.cancel()
        await asyncio.wait([task], timeout=TIMEOUT_S)
        assert task.done()
    served.settle()
    assert served.core.stats().blocks_free == 4


def test_an_aborted_reservation_belongs_to_its_writer_until_given_back(serve: Serve) -> None:
    served = serve()
    reservation = served.reserve("a", [1] * 8)
    served.core.abort("a")
    served.settle()
    assert served.core.stats().reserved == 1
    served.core.start_decode(make_request("a", [1] * 8), reservation, [1])
    served.settle()
    assert (served.core.stats().reserved, served.core.stats().blocks_free) == (0, 32)
    assert served.tokens.empty()


def test_a_failed_step_is_told_once_and_ends_everything(serve: Serve) -> None:
    served = serve(num_blocks=8)
    reservation = served.reserve("a", [1] * 20)
    waiting = served.core.reserve("b", [2] * 20)
    served.runner.error = MemoryError("no memory for the step")
    served.core.submit(make_request("c", [3], max_tokens=1))
    served.core.abort("b")  # makes way for c
    assert served.failures.get(timeout=TIMEOUT_S) is served.runner.error
    served.core._thread.join(TIMEOUT_S)
    assert waiting.cancelled()
    with pytest.raises(RequestError) as refusal:
        served.core.submit(make_request("d", [1]))
    assert refusal.value.status == 503
    with pytest.raises(RequestError, match="shutting down"):
        served.core.start_decode(make_request("a", [1] * 20), reservation, [1])
    with pytest.raises(RequestError, match="shutting down"):
        served.core.reserve("e", [1]).result(0)
    served.core.stop()
    assert served.failures.empty()


def test_a_failing_callback_is_a_failure_too() -> None:
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def broken(tokens: list[Token]) -> None:
        raise OSError(f"nobody takes {len(tokens)} tokens")

    core = EngineCore(
        FakeRunner(),
        max_num_seqs=2,
        max_batched_tokens=8,
        max_model_len=MAX_MODEL_LEN,
        on_tokens=broken,
        on_failure=failures.put,
    )
    core.start()
    core.submit(make_request("a", [1]))
    assert str(failures.get(timeout=TIMEOUT_S)) == "nobody takes 1 tokens"
    core.stop(TIMEOUT_S)


def test_stop_fails_those_who_wait_for_blocks(serve: Serve) -> None:
    served = serve(num_blocks=4)
    served.reserve("a", [1] * 16)
    waiting: Future[Reservation] = served.core.reserve("b", [2] * 16)
    served.core.stop(TIMEOUT_S)
    with pytest.raises(RequestError, match="shutting down") as refusal:
        waiting.result(TIMEOUT_S)
    assert refusal.value.status == 503
    served.core.stop(TIMEOUT_S)
    assert served.failures.empty()


def test_stop_says_what_it_waited_for(serve: Serve) -> None:
    served = serve()
    gate = served.close_gate()
    served.core.submit(make_request("a", [1]))
    served.runner.entered.get(timeout=TIMEOUT_S)
    with pytest.raises(EngineError, match=r"has not finished its step within 0\.01 s"):
        served.core.stop(timeout=0.01)
    gate.release(1)
    served.core.stop(TIMEOUT_S)
    assert len(served.runner.batches) == 1


def test_stop_before_start_does_nothing() -> None:
    Served().core.stop()


def test_the_first_token_can_be_the_last(serve: Serve) -> None:
    served = serve()
    request = make_request("a", [1] * 5, max_tokens=1)
    reservation = served.reserve("a", request.prompt)
    served.receive(reservation)
    served.core.start_decode(request, reservation, first_tokens(request))
    [token] = served.tokens.get(timeout=TIMEOUT_S)
    assert token.finish_reason == FinishReason.LENGTH
    assert not served.runner.batches
