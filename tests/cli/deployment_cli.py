"""`pdctl` as a user types it, with the real router and engines that compute nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.deployment.deployment_harness import FAKE
from tests.processes import Spawned

PDCTL = Path(sys.executable).with_name("pdctl")
TIMEOUT_S = 60


class Cli:
    """Runs pdctl with a state folder of its own (see the fixture `runtime`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def topology(self, *options: str, name: str = "d", ports: str = "reported", **changes: object) -> Path:
        """Write a topology of fake engines; ``options``: of their command line; ``ports``: where theirs come from."""
        profile = self.folder / f"{name}-engine.yaml"
        command = [sys.executable, str(FAKE), "--role", "{role}", "--port", "{port.api}", "--router", "{router}"]
        roles = {role: {"ports": {"api": ports}} for role in ("prefill", "decode", "mixed")}
        content = {"name": "fake", "description": "computes nothing", "protocol": "builtin", "gpus": "none"}
        taken = {"pattern": "Address already in use", "advice": "run it again", "port_taken": True}
        content |= {"registers": "with token", "troubles": [taken]}
        profile.write_text(json.dumps({**content, "command": [*command, *options], "roles": roles}))
        path = self.folder / f"{name}.yaml"
        topology = {"name": name, "engine": str(profile), "router": {"port": 0}, "prefill": 1, "decode": 1}
        path.write_text(json.dumps(topology | changes))
        return path

    def __call__(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PDCTL, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=self.folder
        )

    def spawn(self, *arguments: str | Path) -> Spawned:
        pipe = subprocess.PIPE
        return Spawned([PDCTL, *arguments], stdout=pipe, stderr=pipe, text=True, cwd=self.folder)

    def status(self, *arguments: str) -> dict[str, Any]:
        done = self("status", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pid(self, process: str) -> int:
        return next(p["pid"] for p in self.status()["processes"] if p["name"] == process)


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    assert any(words in line for line in process.stdout), f"the output ended without {words!r}"
