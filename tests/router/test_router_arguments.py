"""The router's command line: what it makes of it, and one line for what is wrong in it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pdctl.errors import PdctlError
from pdctl.router.arguments import parse
from pdctl.router.settings import FixedInstance, Settings


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch):
    for name in ("PDCTL_TOKEN_FILE", "PDCTL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def settings(*argv: str) -> Settings:
    return parse(argv)[0]


def refusal(*argv: str) -> str:
    with pytest.raises(PdctlError) as caught:
        parse(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def usage(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_arguments_everything_has_its_default():
    assert parse([]) == (Settings(), False)


def test_every_flag():
    flags = {
        "--host": ("host", "0.0.0.0", "0.0.0.0"),
        "--port": ("port", "81", 81),
        "--workers": ("workers", "3", 3),
        "--prefill-policy": ("prefill_policy", "random", "random"),
        "--decode-policy": ("decode_policy", "cache_aware", "cache_aware"),
        "--mixed-policy": ("mixed_policy", "round_robin", "round_robin"),
        "--pd-min-tokens": ("pd_min_tokens", "64", 64),
        "--engine-requests": ("engine_requests", "7", 7),
        "--queue-size": ("queue_size", "0", 0),
        "--queue-timeout": ("queue_timeout", "1.5", 1.5),
        "--request-timeout-secs": ("request_timeout", "9", 9.0),
        "--heartbeat-timeout": ("heartbeat_timeout", "8", 8.0),
        "--drain-secs": ("drain", "0", 0.0),
        "--access-log": ("access_log", "-", "-"),
        "--otlp-endpoint": ("otlp_endpoint", "http://a:1", "http://a:1"),
    }
    argv = [word for flag, (_, text, _) in flags.items() for word in (flag, text)]
    files = ["--ssl-certfile", "c", "--ssl-keyfile", "k"]
    expected = replace(
        Settings(),
        **{name: value for name, _, value in flags.values()},
        splitwise=True,
        certificate="c",
        private_key="k",
    )
    assert parse([*argv, *files, "--splitwise", "--debug"]) == (expected, True)


def test_health_flags_are_limits():
    limits = settings("--health-interval", "1", "--health-timeout", "2", "--health-failures", "3").limits
    assert (limits.probe_interval, limits.probe_timeout, limits.probe_failures, limits.probe_successes) == (1, 2, 3, 1)


def test_a_worker_for_each_core():
    assert settings("--workers", "0").workers == len(os.sched_getaffinity(0))


def test_engines_that_are_named():
    found = settings(
        *("--prefill", "http://127.0.0.1:1", "9", "--prefill", "http://127.0.0.2:1/"),
        *("--decode", "http://[::1]:2", "--protocol", "sglang"),
    )
    assert found.fixed == (
        FixedInstance("prefill", "127.0.0.1", 1, 9),
        FixedInstance("prefill", "127.0.0.2", 1, 0),
        FixedInstance("decode", "::1", 2, 0),
    )
    assert (found.splitwise, found.protocol) == (True, "sglang")
    assert not settings("--mixed", "http://localhost:1").splitwise


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1", "http://a:x", "http://a:1/v1"]
)
def test_what_is_no_engines_url(url: str):
    assert refusal("--decode", url) == f"--decode {url}: not an engine's URL, such as http://10.0.0.1:8100"


@pytest.mark.parametrize("ports", [["x"], ["0"], ["65536"], ["1", "2"]])
def test_what_is_no_bootstrap_port(ports: list[str]):
    assert "after the URL comes its bootstrap port, if any" in refusal("--prefill", "http://127.0.0.1:1", *ports)


def test_a_host_that_is_not_known():
    assert refusal("--decode", "http://host.invalid:1").startswith("--decode: host.invalid: ")


@pytest.mark.parametrize("flag", ["--prefill", "--decode", "--splitwise"])
def test_mixed_engines_go_alone(flag: str):
    other = [flag] if flag == "--splitwise" else [flag, "http://127.0.0.1:2"]
    assert refusal("--mixed", "http://127.0.0.1:1", *other) == (
        "--mixed does not go with --splitwise, --prefill or --decode: run a router for each"
    )


@pytest.mark.parametrize("flag", ["--ssl-certfile", "--ssl-keyfile"])
def test_a_certificate_needs_its_key(flag: str):
    assert refusal(flag, "x") == "--ssl-certfile and --ssl-keyfile go together"


@pytest.mark.parametrize(
    ("flag", "text", "why"),
    [
        ("--port", "65536", "65536 is no port"),
        ("--port", "x", "'x' is no whole number"),
        ("--workers", "65", "65 is not between 0 and 64"),
        ("--workers", "-1", "-1 is not between 0 and 64"),
        ("--pd-min-tokens", "-1", "-1 is less than 0"),
        ("--health-failures", "0", "0 is too few"),
        ("--queue-timeout", "inf", "inf is no time in seconds"),
        ("--queue-timeout", "-1", "-1 is no time in seconds"),
        ("--queue-timeout", "soon", "soon is no time in seconds"),
        ("--heartbeat-timeout", "0", "0 s is too short"),
        ("--engine-requests", "0", "0 is too few"),
    ],
)
def test_numbers_that_cannot_be(flag: str, text: str, why: str, capsys: pytest.CaptureFixture[str]):
    assert usage(capsys, f"{flag}={text}") == f"python -m pdctl.router: error: argument {flag}: {why}"


def test_a_policy_that_does_not_exist(capsys: pytest.CaptureFixture[str]):
    assert "invalid choice: 'best'" in usage(capsys, "--mixed-policy", "best")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert str(tmp_path / "keys") in refusal("--api-key", str(tmp_path / "keys"))
    monkeypatch.setenv("PDCTL_TOKEN_FILE", str(tmp_path / "token"))
    assert refusal() == f"PDCTL_TOKEN_FILE: cannot read {tmp_path / 'token'}: " + (
        f"[Errno 2] No such file or directory: '{tmp_path / 'token'}'"
    )
