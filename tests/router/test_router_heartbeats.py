"""Registrations that repeat: what makes one news."""

import pytest
from router_mocks import engine, running


def news(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the engines."""
    return [record.message.split(":")[0] for record in caplog.records if record.name == "pdctl.router.engines.registry"]


async def test_a_prefills_connections_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """They come and go with its decodes; that says nothing about the trust that it has lost."""
    caplog.set_level("INFO")
    async with engine() as prefill, running(splitwise=True) as at:
        await at.admit("prefill", prefill, connected_decodes=[])
        instance = at.router.registry.instances[prefill.key]
        at.router.registry.request_failed(instance, "dropped", "it dropped a request")
        caplog.clear()
        await at.admit("prefill", prefill, connected_decodes=["127.0.0.1:1"])
        assert instance.breaker.failures == 1
        assert news(caplog) == []
        known = (await at.http.get("/registered")).json()["prefill"]
        assert [one["connected_decodes"] for one in known] == [["127.0.0.1:1"]]


async def test_a_change_is_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with engine() as prefill, running(splitwise=True) as at:
        await at.admit("prefill", prefill)
        caplog.clear()
        await at.admit("prefill", prefill, is_paused=True)
        assert news(caplog) == ["paused"]
