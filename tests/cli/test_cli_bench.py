import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from pdctl.cli.main import app
from pdctl.deployment.store import ProcessId, State, Store
from tests.bench.sse_server import SseServer, running

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def started(*args):
    """`pdctl bench` with ``args``; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from pdctl.cli.main import main; main()", "bench", *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def bench(*args):
    async with started(*args) as process:
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


def refused(code, message, *args):
    """Check that `pdctl bench` fails so, in one line."""
    result = CliRunner().invoke(app, ["bench", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def errors(err):
    """The errors on stderr: a busy machine may add the warning that the client was saturated."""
    return [line for line in err.splitlines() if not line.startswith("warning: the client was saturated")]


async def test_measures_a_url_and_writes_json(tmp_path):
    path = tmp_path / "result.json"
    async with running(SseServer()) as server:
        code, out, err = await bench(
            *("--url", server.url, "--qps", "50", "--requests", "10", "--json", str(path)),
            *("--input-tokens", "20", "--output-tokens", "6", "--seed", "1", "--save-detailed"),
        )
    assert (code, errors(err)) == (0, [])
    assert "10 completed, 0 failed" in out
    data = json.loads(path.read_text())
    assert (data["completed"], data["model_id"], data["request_rate"], data["seed"]) == (10, "tiny", 50.0, 1)
    assert data["total_output_tokens"] == 60
    assert data["generated_texts"] == ["tok " * 6] * 10
    assert len(server.bodies) == 11  # the warm-up too
    assert all(len(body["messages"][0]["content"].split()) == 20 for body in server.bodies)


async def test_every_run_has_other_prompts_unless_a_seed_is_given():
    async with running(SseServer()) as server:
        for seed in ([], [], ["--seed", "1"], ["--seed", "1"]):
            await bench("--url", server.url, "--concurrency", "1", "--requests", "1", "--warmup", "0", *seed)
    first, second, third, fourth = (body["messages"] for body in server.bodies)
    assert first != second
    assert third == fourth


async def test_failed_requests_make_it_fail_beyond_the_share_allowed(tmp_path):
    path = tmp_path / "result.json"
    settings = ["--concurrency", "1", "--requests", "4", "--warmup", "0", "--json", str(path)]
    async with running(SseServer(misbehave={1: "500"})) as server:
        code, out, err = await bench("--url", server.url, *settings)
    assert code == 10
    assert errors(err) == ["error: 1 of 4 requests failed: more than --max-error-rate 0"]
    assert "http 500" in out
    assert json.loads(path.read_text())["failed"] == 1
    async with running(SseServer(misbehave={1: "500"})) as server:
        code, _, err = await bench("--url", server.url, *settings, "--max-error-rate", "0.25")
    assert (code, errors(err)) == (0, [])


async def test_a_result_that_cannot_be_written_is_shown_all_the_same():
    async with running(SseServer()) as server:
        code, out, err = await bench("--url", server.url, "--qps", "50", "--requests", "2", "--json", "/dev/full")
    assert code == 2
    assert "2 completed" in out
    assert "cannot write the result to /dev/full: No space left on device" in errors(err)[0]


async def test_interrupting_it_writes_what_was_measured(tmp_path):
    path = tmp_path / "result.json"
    async with (
        running(SseServer()) as server,
        started(*("--url", server.url, "--qps", "50", "--duration", "600", "--json", str(path))) as process,
    ):
        await server.until(lambda: len(server.bodies) >= 20)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err.decode()
    assert "completed" in out.decode()
    data = json.loads(path.read_text())
    assert data["interrupted"] is True
    assert data["completed"] >= 10


async def test_the_result_is_written_though_nobody_reads_the_output(tmp_path):
    path = tmp_path / "result.json"
    options = ("--qps", "inf", "--requests", "3", "--json", str(path))
    async with running(SseServer()) as server, started("--url", server.url, *options) as process:
        process.stdout._transport.close()
        await process.wait()
    assert json.loads(path.read_text())["completed"] == 3


async def test_prompts_come_from_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "what is it", "output_tokens": 2}\n{"prompt": "who are you"}\n')
    async with running(SseServer()) as server:
        settings = ["--concurrency", "1", "--requests", "2", "--warmup", "0", "--endpoint", "completions"]
        code, _, _ = await bench("--url", server.url, *settings, "--prompts", str(path), "--output-tokens", "3")
    assert code == 0
    assert [(body["prompt"], body["max_tokens"]) for body in server.bodies] == [("what is it", 2), ("who are you", 3)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("PDCTL_STATE_DIR", str(tmp_path / "state"))
    return Store()


def keep(store, name, **fields):
    """Record a deployment as if it had been started."""
    folder = store.folder(name)
    folder.path.mkdir(parents=True)
    folder.write_state(State(**{"run_id": "x", "phase": "verified", "owner": ProcessId.own(), "started": 0.0} | fields))


async def test_the_running_deployment_is_measured(store):
    async with running(SseServer()) as server:
        keep(store, "old", phase="down")
        keep(store, "chat", endpoint=server.url)
        code, out, _ = await bench("--concurrency", "2", "--requests", "4")
        assert (code, server.url in out) == (0, True)
        code, out, _ = await bench("--name", "chat", "--concurrency", "2", "--requests", "4")
        assert (code, server.url in out) == (0, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "'chat' does not serve, it is starting: see `pdctl status`"),
        (["--name", "old"], "'old' does not serve, it is down"),
        (["--name", "other"], "no deployment 'other'"),
    ],
)
def test_a_deployment_that_does_not_serve_is_refused(store, args, message):
    keep(store, "old", phase="down", endpoint="http://127.0.0.1:9")
    keep(store, "chat", phase="starting")
    refused(7, message, "--qps", "1", *args)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--url", "http://127.0.0.1:9"], 2, "--qps N (open loop) or --concurrency N"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--name", "x"], 2, "--name and --url"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--save-detailed"], 2, "--json"),
        (["--url", "http://127.0.0.1:9", "--qps", "1"], 10, "no answer from http://127.0.0.1:9/v1/models"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--json", "/nowhere/x.json"], 2, "cannot write the result"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--requests", "1", "--duration", "1"], 2, "either a number"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--burstiness", "0"], 2, "burstiness must be at least"),
        (["--url", "http://127.0.0.1:9", "--qps", "1", "--prompts", "/nowhere/x"], 2, "cannot read the prompts"),
    ],
)
def test_mistakes_are_said_in_one_line(args, code, message):
    refused(code, message, *args)
