"""Secrets do not show in a plan."""

import pytest

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


def shown(*argv: str, **env: str) -> ProcessPlan:
    router = process("router", *argv, **env)
    plan = Plan(name="a", model="m", engine="e", hosts={}, router=router, engines=())
    return redact(plan).router


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "OPENAI_API_KEYS", "APIKEY", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "NPM_AUTH"),
        *("SECRET_KEY_BASE", "accessToken", "AWS_SECRET_ACCESS_KEY", "hf_token", "CREDENTIALS", "MAX_AUTH_TOKEN"),
    ],
)
def test_a_variable_that_is_named_like_a_secret(name: str):
    assert shown(**{name: "abc"}).env == {name: "***"}


def test_all_values_of_a_flag_are_hidden():
    router = shown("run", "--api-keys", "a", "b", "--port", "1")
    assert router.argv == ("run", "--api-keys", "***", "***", "--port", "1")


@pytest.mark.parametrize(
    "name",
    [
        *("--max-tokens", "--max-num-batched-tokens", "--tokenizer", "--tokenizer-mode", "--skip-tokenizer-init"),
        *("--long-prefill-token-threshold", "--speculative-num-draft-tokens", "--path", "--passes", "--keyboard"),
        "--token-file",
    ],
)
def test_a_number_of_tokens_is_no_secret(name: str):
    assert shown("run", name, "512").argv == ("run", name, "512")
    variable = name.strip("-").upper().replace("-", "_")
    assert shown(**{variable: "512"}).env == {variable: "512"}
