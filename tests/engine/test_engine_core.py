"""The engine core's thread: what callers of any thread can rely on."""

import queue
import threading
from concurrent.futures import Future

import pytest

from engine.core import EngineCore, Reservation
from engine.errors import EngineError, RequestError
from engine.scheduler.request import FinishReason, Token
from engine.scheduler.scheduler import Scheduler
from tests.engine.scheduler.fake_runner import FakeRunner, expected, first_tokens
from tests.engine.scheduler.rig import make_request
from tests.engine.served_core import MAX_MODEL_LEN, TIMEOUT_S, Serve, Served


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
