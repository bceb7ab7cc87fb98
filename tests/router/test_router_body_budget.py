"""All bodies together are bounded, and every one is given back however its request ends."""

import asyncio

from tests.router.router_mocks import PROMPT, Turn, engine, hold, message, quick, running, until

LARGE = PROMPT | {"user": "x" * 600}


async def test_bodies_beyond_the_limit_are_refused_until_others_are_answered():
    gate = asyncio.Event()

    async def answer(turn: Turn) -> None:
        await gate.wait()
        await turn.answer({})

    async with engine(answer) as mock, running(limits=quick(bodies_bytes=1000)) as at:
        await at.admit("mixed", mock)
        first = asyncio.create_task(at.post(LARGE))
        await mock.turn()
        refused = await at.post(LARGE)
        assert refused.status_code == 503
        assert "holds 1000 bytes" in message(refused)
        gate.set()
        assert (await first).status_code == 200
        assert (await at.post(LARGE)).status_code == 200


async def test_nothing_is_held_after_all_ways_to_end():
    async def answer(turn: Turn) -> None:
        await turn.answer({})

    async with engine(answer) as mock, running() as at:
        await at.admit("mixed", mock)
        budget = at.router.server.budget
        for _ in range(3):  # the later ones are recognised by their bytes
            await at.post(LARGE)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        _, half = await at.connect()
        half.write(head + b"x" * 500)
        await until(lambda: budget.used == 500, "half a body to be held")
        half.close()
        chunked = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZ"
        assert b" 400 " in await at.say(chunked)
        await until(lambda: budget.used == 0, "nothing to be held")


async def test_a_client_that_leaves_gives_back_what_it_sent():
    async with engine(hold) as mock, running() as at:
        await at.admit("mixed", mock)
        budget = at.router.server.budget
        leaving = asyncio.create_task(at.post(LARGE))
        turn = await mock.turn()
        assert budget.used > 600
        leaving.cancel()
        await turn.peer_left()
        await until(lambda: budget.used == 0, "nothing to be held")
