"""Ports that several deployments want: reserved before anything starts; lost ones are planned anew."""

import pytest

from pdctl.agent.port_book import PortBook
from pdctl.deployment.apply import prepare
from pdctl.deployment.launch import launch
from pdctl.deployment.port_reservation import TRIES, PortRaces
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import PortsTakenError, ProcessDiedError
from pdctl.planning.plan import Plan
from pdctl.profiles import Trouble
from tests.deployment.deployment_harness import living, make_plan, process, started

PORTS = (20498, 20499)
LOST = Trouble(pattern="Address already in use", advice="run it again", port_taken=True)


def plan_of(*ports: int) -> Plan:
    """An engine that has these ports, though it binds none of them."""
    plan = make_plan()
    prefill = process("prefill-0", "prefill").model_copy(update={"port_numbers": {"side": ports}})
    return plan.model_copy(update={"engines": (prefill, plan.engines[1]), "troubles": (LOST,)})


async def test_a_deployment_has_its_ports_for_as_long_as_it_runs(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of(*PORTS)) as deployment:
        holder = f"reserved by deployment run {deployment.agent_run('here')}"
        assert PortBook().reserved(PORTS) == dict.fromkeys(PORTS, holder)
        taken = (await deployment.hosts["here"].probe(folder.path, PORTS))["taken_ports"]
        assert taken == {str(port): holder for port in PORTS}
    assert PortBook().reserved(PORTS) == {}


async def test_ports_that_another_has_reserved_since_the_plan(folder: DeploymentFolder) -> None:
    """Nothing is started; the next plan goes without them."""
    assert PortBook().reserve("another", PORTS[:1]) == {}
    plan, races = plan_of(*PORTS), PortRaces()
    deployment = prepare(plan, folder)
    try:
        with pytest.raises(PortsTakenError) as caught:
            await launch(deployment)
    finally:
        PortBook().reserve("another", [])
        await deployment.close()
    holder = "reserved by deployment run another"
    assert str(caught.value) == (
        f"ports that were free when the plan was made are not any more: {PORTS[0]} of host here ({holder})"
    )
    assert living(folder.path.parents[1] / "run") == []
    assert races.lost(caught.value, plan)
    assert races.taken == {"here": {PORTS[0]: holder}}


def died(name: str, *lines: str) -> ProcessDiedError:
    error = ProcessDiedError(f"{name} exited with code 1", detail="\n".join(lines))
    error.processes = (name,)
    return error


def test_an_engine_that_ends_for_want_of_a_port_is_planned_again_three_times() -> None:
    plan, races = plan_of(*PORTS), PortRaces()
    error = died("prefill-0", "starting", "OSError: [Errno 98] Address already in use")
    assert [races.lost(error, plan) for _ in range(TRIES + 1)] == [True, True, True, False]
    assert races.taken == {"here": dict.fromkeys(PORTS, "taken when prefill-0 was started")}


@pytest.mark.parametrize(
    "error",
    [
        died("prefill-0", "out of memory"),
        died("decode-0", "Address already in use"),  # of which the plan has given it no port
        PortsTakenError("", {}),
    ],
)
def test_other_ends_are_not_tried_again(error: ProcessDiedError) -> None:
    races = PortRaces()
    assert not races.lost(error, plan_of(*PORTS))
    assert races.taken == {}
