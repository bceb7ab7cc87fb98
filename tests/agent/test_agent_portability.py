"""The agent is shipped to hosts that have nothing but a Python >= 3.9."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pdctl.agent
from tests.agent.agent_harness import eventually

SOURCES = sorted(Path(pdctl.agent.__file__).parent.glob("*.py"))
LIFE = """
import asyncio, json, os, sys, time
from pdctl.agent.protocol import encode, read_message

async def main(path):
    reader, writer = await asyncio.open_unix_connection(path)
    async def call(method, **params):
        writer.write(encode({"id": 1, "method": method, "params": params}))
        answer = await read_message(reader)
        assert "result" in answer, answer
        return answer["result"]
    await call("start", name="p", argv=["sh", "-c", "echo up; sleep 1000"], env={})
    async def until(**expected):
        end = time.monotonic() + 20
        while True:
            process = (await call("list"))[0]
            if process["memory_bytes"] and expected.items() <= process.items():
                return process
            assert time.monotonic() < end, process
            await asyncio.sleep(0.05)
    first = await until(restarts=0)
    await call("supervise", name="p", restart={"backoff_s": 0.01}, probe_url="http://127.0.0.1:1/health", ready_s=60)
    os.kill(first["pid"], 9)
    await until(restarts=1)
    assert (await call("stop", name="p"))["exit_code"] == -15
    again = "pdctl: p was started again (1): it was killed by SIGKILL"
    assert [line[2] for line in (await call("logs"))["lines"]] == ["up", again, "up"]
    await call("shutdown")

asyncio.run(main(json.load(open(sys.argv[1]))["socket"]))
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("pdctl.agent"), name


def _python(version: str) -> str | None:
    """An interpreter of that version: on the PATH, or among those that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    return next((python for python in found if python and _works(python)), None)


def _works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_a_whole_life_under_another_python(version: str, tmp_path: Path) -> None:
    python = _python(version)
    if python is None:
        pytest.skip(f"python{version} is not installed")
    folder = tmp_path / "agent"
    environment = os.environ | {
        "PYTHONPATH": str(Path(pdctl.agent.__file__).parents[2]),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [python, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    run("-m", "pdctl.agent", "serve", "--detach", "--dir", str(folder), "--run-id", "other")
    run("-c", LIFE, str(folder / "agent.json"))
    eventually(lambda: not (folder / "agent.json").exists(), "the agent's end")
    assert "Traceback" not in (folder / "agent.log").read_text()
    run("-m", "pdctl.agent", "probe", "--dir", str(folder), "--ports", "1")
    run("-m", "pdctl.agent", "sweep", "--dir", str(folder), "--run-id", "other", "--wait", "10")
