"""Another router than pdctl's, with which the engines register when they like: `up` waits for that."""

import socket
import sys
from pathlib import Path

import pytest

from pdctl.deployment import serving_engines
from pdctl.deployment.apply import prepare
from pdctl.deployment.launch import launch
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import StepTimeoutError
from pdctl.planning.plan import Plan, Readiness
from tests.deployment.deployment_harness import make_plan, started

ROUTER = Path(__file__).with_name("fake_fd_router.py")
LATE = ["--registers-late", "0.5"]


def plan_of(*, counts: bool = False, **options: list[str]) -> Plan:
    """One prefill and one decode engine that register late, and a router that may tell how many have."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    by_name = {"prefill-0": LATE, "decode-0": LATE} | {name.replace("_", "-"): value for name, value in options.items()}
    plan = make_plan(options=by_name)
    router = plan.router.model_copy(
        update={
            "argv": (sys.executable, str(ROUTER), "--port", str(port), *(["--counts"] if counts else [])),
            "ports": {"api": port},
            "readiness": Readiness(kind="http", timeout_s=20),
            "metrics": {},
        }
    )
    return plan.model_copy(
        update={
            "router": router,
            "has_own_router": False,
            "router_kind": "fd-router",
            "registered_path": "/registered_number" if counts else None,
        }
    )


async def test_a_router_that_tells_how_many_have_registered(folder: DeploymentFolder) -> None:
    said: list[str] = []
    async with started(folder, plan_of(counts=True), said.append) as deployment:
        assert (await deployment.status()).state == "ready"
    assert "the router knows 2 engines" in said
    assert "requests were answered; fd-router does not say by which of prefill-0 x decode-0" in said


async def test_an_engine_that_the_router_does_not_count(
    folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_engines, "REGISTER_TIMEOUT_S", 1.0)
    deployment = prepare(plan_of(counts=True, decode_0=["--never-register"]), folder)
    with pytest.raises(StepTimeoutError, match=r"^decode-0 did not register at the router within 1 s"):
        await launch(deployment)
    await deployment.close()


async def test_a_router_that_only_answers_with_errors_until_then(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of()) as deployment:
        assert (await deployment.status()).state == "ready"
