"""An engine that says 502 may mean the engine that it works with, which it may see die before the router does."""

import pytest
from router_mocks import ANSWER, Turn, engine, hold, split

PEER = {"prefill": "decode", "decode": "prefill"}


async def peer_is_lost(turn: Turn) -> None:
    await turn.answer({"error": {"message": "the other engine is lost"}}, 502)


@pytest.mark.parametrize("lonely", ["prefill", "decode"])
async def test_the_only_engine_of_its_role_is_tried_with_another_peer(lonely: str) -> None:
    async with engine(hold) as dead:

        async def judge_peer(turn: Turn) -> None:
            lost = turn.json["disaggregate_info"][f"{PEER[lonely]}_port"] == dead.port
            await (peer_is_lost(turn) if lost else turn.answer(ANSWER))

        async with split(**{f"on_{lonely}": judge_peer}) as pair:
            await pair.at.admit(PEER[lonely], dead)
            for _ in range(2):  # one of these comes to the dead engine
                response = await pair.at.post()
                assert (response.status_code, response.json()) == (200, ANSWER)
            assert pair.at.metrics.retries.value == 1
            await pair.at.idle()


async def test_an_engine_that_has_no_other_peer_is_tried_once() -> None:
    async with split(on_prefill=peer_is_lost, on_decode=hold) as pair:
        assert (await pair.at.post()).status_code == 502
        assert pair.prefill.turns.qsize() == 1
        await pair.at.idle()
