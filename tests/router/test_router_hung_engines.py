"""Engines that are alive but answer nothing, or only that they are not well."""

import asyncio

from router_mocks import engine, hold, quick, running, until


async def test_a_request_at_a_hung_engine_is_moved_once_another_engine_is_back() -> None:
    """Also long after the engine was given up: until then there was nowhere to go."""
    async with engine(hold) as hung, engine() as other, running(limits=quick(probe_interval=0.02)) as at:
        await at.admit("mixed", hung)
        answer = asyncio.ensure_future(at.post())
        await hung.turn()
        hung.health_status = 500
        seen = hung.health_checks
        await until(lambda: hung.health_checks > seen + 10, "several probes to fail")
        await at.admit("mixed", other)
        response = await answer
        assert response.status_code == 200
        assert response.headers["x-router-decode-url"] == other.url
