"""Engines that are named on the command line: they send no heartbeats, their health decides."""

import pytest
from router_mocks import PROMPT, MockEngine, engine, message, quick, running, until

from pdctl.errors import PdctlError
from pdctl.router.arguments import parse
from pdctl.router.engines.health import HealthChecks
from pdctl.router.engines.instance import Instance
from pdctl.router.settings import FixedInstance, Limits, Settings


def settings(*argv: str) -> Settings:
    return parse(argv)[0]


def refused(*argv: str) -> str:
    with pytest.raises(PdctlError) as error:
        parse(argv)
    return str(error.value)


# The command line.


def test_the_command_line_names_engines():
    given = settings(
        *("--prefill", "http://10.0.0.1:8100", "8998", "--prefill", "http://[::1]:8101/"),
        *("--decode", "http://10.0.0.2:8200", "--decode", "http://10.0.0.2:8201", "--protocol", "sglang"),
    )
    assert given.fixed == (
        FixedInstance("prefill", "10.0.0.1", 8100, 8998),
        FixedInstance("prefill", "::1", 8101, 0),
        FixedInstance("decode", "10.0.0.2", 8200, 0),
        FixedInstance("decode", "10.0.0.2", 8201, 0),
    )
    assert (given.splitwise, given.protocol) == (True, "sglang")


def test_mixed_engines_need_no_splitwise():
    given = settings("--mixed", "http://127.0.0.1:8100")
    assert (given.splitwise, given.fixed) == (False, (FixedInstance("mixed", "127.0.0.1", 8100, 0),))


def test_a_hosts_name_is_looked_up_once():
    [fixed] = settings("--mixed", "http://localhost:8100").fixed
    assert fixed.host in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    "url",
    ["10.0.0.1:8100", "https://10.0.0.1:8100", "http://10.0.0.1", "http://:80", "http://x:99999", "http://x:80/v1", ""],
)
def test_what_is_no_engines_url_is_refused(url: str):
    assert f"--decode {url}: not an engine's URL" in refused("--decode", url)


@pytest.mark.parametrize("port", [["0"], ["x"], ["70000"], ["1", "2"], ["-1"]])
def test_what_is_no_bootstrap_port_is_refused(port: list[str]):
    assert "bootstrap port" in refused("--prefill", "http://10.0.0.1:1", *port)


def test_mixed_and_pairs_do_not_go_together():
    for other in (["--splitwise"], ["--decode", "http://10.0.0.1:1"], ["--prefill", "http://10.0.0.1:1"]):
        assert "run a router for each" in refused("--mixed", "http://10.0.0.1:2", *other)


def test_health_thresholds_are_options():
    limits = settings(
        *("--health-interval", "1", "--health-timeout", "2", "--health-failures", "3", "--health-successes", "4")
    ).limits
    assert (limits.probe_interval, limits.probe_timeout, limits.probe_failures, limits.probe_successes) == (1, 2, 3, 4)
    defaults = settings().limits
    assert defaults == Limits()


# Serving.


def fixed(role: str, mock: MockEngine) -> FixedInstance:
    return FixedInstance(role, "127.0.0.1", mock.port, 0)  # type: ignore[arg-type]


async def test_a_fixed_pair_serves_any_model_once_it_is_healthy():
    async with engine() as prefill, engine() as decode:
        named = (fixed("prefill", prefill), fixed("decode", decode))
        async with running(splitwise=True, protocol="sglang", fixed=named) as at:
            await until(lambda: at.router.registry.missing() is None, "the engines to be found healthy")
            for model in ("m", "another"):
                assert (await at.post(PROMPT | {"model": model})).status_code == 200
            assert "bootstrap_room" in (await prefill.turn()).json
            assert (await at.http.get("/health")).status_code == 200
            described = (await at.http.get("/instances")).json()
            assert [(one["id"], one["role"], one["fixed"], one["protocol"]) for one in described] == [
                (prefill.key, "prefill", True, "sglang"),
                (decode.key, "decode", True, "sglang"),
            ]
            await at.idle()


async def test_fixed_mixed_engines():
    async with engine() as one, engine() as two, running(fixed=(fixed("mixed", one), fixed("mixed", two))) as at:
        await until(lambda: len(at.router.registry.live("mixed")) == 2, "both to be found healthy")
        used = {(await at.post()).headers["x-router-decode-url"] for _ in range(2)}
        assert used == {one.url, two.url}


async def test_an_engine_that_is_not_there_yet_is_waited_for():
    async with engine() as mixed:
        await mixed.stop()
        async with running(fixed=(fixed("mixed", mixed),)) as at:
            response = await at.post()
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            await until(lambda: at.router.registry.instances[mixed.key].reason == "Connection refused", "the reason")
            assert f"no mixed instance answers: {mixed.url}: Connection refused" in message(await at.post())
            await mixed.start()
            await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
            assert (await at.post()).status_code == 200


async def test_a_fixed_engine_is_not_removed_for_want_of_heartbeats():
    limits = quick(probe_interval=1000.0)
    async with engine() as mixed, running(fixed=(fixed("mixed", mixed),), heartbeat_timeout=0.0, limits=limits) as at:
        await until(lambda: at.router.registry.live("mixed"), "it to be found healthy")
        ticks = mixed.health_checks
        at.router.registry.check(at.router.now() + 1000)
        assert (await at.post()).status_code == 200
        assert mixed.health_checks == ticks


# Health, with thresholds.


async def test_one_failed_probe_is_forgiven_and_two_in_a_row_are_not():
    async with engine() as mixed, running(limits=quick(probe_interval=1000.0)) as at:
        await at.admit("mixed", mixed)
        for statuses, live in (([500], True), ([200], True), ([500], True), ([500], False), ([500], False)):
            for mixed.health_status in statuses:
                await probe(at.router.health, at.router.registry.instances[mixed.key])
            assert bool(at.router.registry.live("mixed")) == live
        assert "/health answers 500" in message(await at.post())


async def test_thresholds_up_and_down():
    limits = quick(probe_interval=1000.0, probe_failures=3, probe_successes=2, tick=1000.0)
    async with engine() as mixed, running(limits=limits) as at:
        await at.admit("mixed", mixed)
        instance = at.router.registry.instances[mixed.key]
        seen = []
        for mixed.health_status in (500, 500, 200, 500, 500, 500, 200, 500, 200, 200):
            await probe(at.router.health, instance)
            seen.append(instance.live)
        assert seen == [True, True, True, True, True, False, False, False, False, True]


async def test_a_connection_that_is_refused_counts_at_once():
    async with engine() as mixed, running(limits=quick(probe_interval=0.02)) as at:
        await at.admit("mixed", mixed)
        await mixed.stop()
        await until(lambda: not at.router.registry.live("mixed"), "it to be taken out")
        assert at.router.registry.instances[mixed.key].reason == "Connection refused"


async def test_an_engine_that_is_healthy_again_gets_requests_without_registering():
    async with engine() as mixed, running(limits=quick(probe_interval=0.02)) as at:
        await at.admit("mixed", mixed)
        mixed.health_status = 503
        await until(lambda: not at.router.registry.live("mixed"), "it to be taken out")
        mixed.health_status = 200
        await until(lambda: at.router.registry.live("mixed"), "it to be brought in")
        assert (await at.post()).status_code == 200


async def probe(health: HealthChecks, instance: Instance) -> None:
    """Ask an engine's health once, and wait for what comes of it."""
    health.probe_soon(instance)
    await until(lambda: instance.key not in health._tasks, "the probe's end")
