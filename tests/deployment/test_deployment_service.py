"""When the end of a process ends what a deployment can do for anybody."""

import pytest

from pdctl.deployment.service import end_of_service
from pdctl.deployment.snapshot import Snapshot
from pdctl.planning.plan import Plan
from tests.deployment.deployment_harness import make_plan, process

PLAN = make_plan(prefill=2, decode=1)
NODE = process("decode-0-node1", "decode").model_copy(update={"head": "decode-0"})
SPREAD = PLAN.model_copy(update={"engines": (*PLAN.engines, NODE)})


def ends(plan: Plan, **changed: str) -> bool:
    """Whether the last named ends it; all others are ready."""
    states = {p.name: "ready" for p in plan.processes} | {name.replace("_", "-"): s for name, s in changed.items()}
    snapshots = {
        name: Snapshot.model_validate({"name": name, "pid": 1, "state": "exited" if state == "stopped" else state})
        for name, state in states.items()
    }
    snapshots = {n: s.model_copy(update={"stopped": states[n] == "stopped"}) for n, s in snapshots.items()}
    return end_of_service(lambda: plan)(snapshots, snapshots[list(changed)[-1].replace("_", "-")])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"router": "failed"}, True),
        ({"router": "exited"}, True),
        ({"router": "restarting"}, False),
        ({"router": "stopped"}, False),
        ({"decode_0": "failed"}, True),
        ({"prefill_0": "failed"}, False),
        ({"prefill_0": "failed", "prefill_1": "restarting"}, False),
        ({"prefill_0": "failed", "prefill_1": "stopped"}, False),
        ({"prefill_0": "failed", "prefill_1": "exited"}, True),
        ({"prefill_0": "failed", "router": "restarting"}, False),
    ],
)
def test_a_role_without_any_process_that_may_serve(changed: dict[str, str], expected: bool) -> None:
    assert ends(PLAN, **changed) == expected


def test_an_engine_on_several_hosts_needs_all_its_processes() -> None:
    assert ends(SPREAD, decode_0_node1="failed")
    assert not ends(SPREAD, decode_0_node1="restarting")


def test_what_is_not_in_the_plan_ends_nothing() -> None:
    """It was taken out of it while it was held."""
    stranger = Snapshot(name="decode-7", pid=1, state="exited", exit_code=0)
    assert not end_of_service(lambda: PLAN)({"decode-7": stranger}, stranger)
