"""Secrets do not show in a plan."""

from pdctl.planning.plan import HostPlan, Plan, ProcessPlan
from pdctl.planning.redaction import redact


def process(name: str, *argv: str, **env: str) -> ProcessPlan:
    role = "router" if name == "router" else "mixed"
    return ProcessPlan(name=name, role=role, host="here", argv=argv, env=env)


def test_secrets_are_hidden_and_nothing_else():
    engine = process(
        "mixed-0",
        *("python", "--api-key", "abc", "--max-num-batched-tokens", "512", "--auth_token=abc", "--key", "--port", "1"),
        HF_TOKEN="abc",
        DB_PASSWORD="abc",
        OMP_NUM_THREADS="1",
        PDCTL_TOKEN_FILE="/a/token",
    )
    router = process("router", "python", "--api-key=abc")
    plan = Plan(
        name="a", model="m", engine="e", hosts={"here": HostPlan(name="here")}, router=router, engines=(engine,)
    )
    shown = redact(plan)
    assert shown.router.argv == ("python", "--api-key=***")
    assert shown.engines[0].argv == (
        *("python", "--api-key", "***", "--max-num-batched-tokens", "512", "--auth_token=***", "--key", "--port", "1"),
    )
    assert shown.engines[0].env == {
        "HF_TOKEN": "***",
        "DB_PASSWORD": "***",
        "OMP_NUM_THREADS": "1",
        "PDCTL_TOKEN_FILE": "/a/token",
    }
    assert "abc" not in shown.model_dump_json()
