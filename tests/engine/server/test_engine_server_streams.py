import asyncio

import pytest

from engine.errors import RequestError
from engine.scheduler.request import Token
from engine.server.streams import TokenStreams

TOKEN = Token("a/1", 0, 5, None)


@pytest.fixture
async def streams():
    return TokenStreams(asyncio.get_running_loop())


async def soon(awaitable):
    async with asyncio.timeout(10):
        return await awaitable


async def test_tokens_of_another_thread_come_in_order_and_together_and_those_of_an_earlier_request_do_not(streams):
    with streams.open("a", "a/1") as stream:
        for i in range(3):
            await asyncio.to_thread(streams.on_tokens, [TOKEN._replace(token_id=i), Token("a/0", 0, 9, None)])
        assert [token.token_id for token in await soon(stream.take())] == [0, 1, 2]


async def test_a_closed_streams_id_is_free_again(streams):
    with streams.open("a", "a/1"), pytest.raises(RequestError, match="already"), streams.open("a", "a/1"):
        pass
    streams.on_tokens([TOKEN])
    with streams.open("a", "a/1") as stream:
        streams.fail(["a"], RequestError("end"))
        with pytest.raises(RequestError, match="end"):
            await soon(stream.take())


async def test_a_cleared_stream_forgets_tokens_but_not_its_error(streams):
    with streams.open("a", "a/1") as stream:
        for error in (None, RequestError("end")):
            stream.put(TOKEN)
            if error:
                stream.fail(error)
            stream.clear()
            stream.put(TOKEN._replace(token_id=8))
            if error:
                with pytest.raises(RequestError, match="end"):
                    await soon(stream.take())
            else:
                assert [token.token_id for token in await soon(stream.take())] == [8]


async def test_guard_returns_what_the_work_returns(streams):
    with streams.open("a", "a/1") as stream:
        assert await soon(stream.guard(asyncio.sleep(0, "done"))) == "done"


async def test_guard_cancels_the_work_when_the_stream_fails_and_waits_for_its_end(streams):
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with streams.open("a", "a/1") as stream:
        guarded = asyncio.create_task(stream.guard(work()))
        await soon(begun.wait())
        streams.fail(None, RequestError("aborted"))
        with pytest.raises(RequestError, match="aborted"):
            await soon(guarded)
        assert ended.is_set()


async def test_guard_cancelled_cancels_the_work(streams):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with streams.open("a", "a/1") as stream:
        guarded = asyncio.create_task(stream.guard(work()))
        await soon(begun.wait())
        guarded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(guarded)
        assert cancelled.is_set()


async def test_guard_raises_the_works_error(streams):
    async def work():
        raise RequestError("refused")

    with streams.open("a", "a/1") as stream, pytest.raises(RequestError, match="refused"):
        await soon(stream.guard(work()))
