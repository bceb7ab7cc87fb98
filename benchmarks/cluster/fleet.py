"""Deployments on hosts made of namespaces of this machine (tests/cluster), all of which share its cores."""

import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.cluster_host import Spec
from tests.e2e.e2e_harness import Cli
from tests.engine.tiny import make_tiny_model

UP_S = 600.0
NAME = "fleet"


@dataclass(frozen=True)
class Fleet:
    """Hosts, and the launcher of a deployment on them."""

    cluster: Cluster
    cli: Cli
    model: Path

    @property
    def hosts(self) -> list[str]:
        """Their names."""
        return [host.name for host in self.cluster]

    def topology(
        self, prefill: list[str], decode: list[str], restart: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """The tiny model, in float32, with an engine on each of these hosts; the router on the first host."""
        engine = {"args": {"dtype": "float32", "threads": 1}, "restart": restart or {}}
        return {
            "name": NAME,
            "model": str(self.model),
            "hosts": {name: {"ssh": name, "python": sys.executable} for name in self.hosts},
            "router": {"host": self.hosts[0], "port": 0},
            "prefill": [{"host": name, **engine} for name in prefill],
            "decode": [{"host": name, **engine} for name in decode],
        }

    def run(self, *arguments: str | Path) -> float:
        """Run a command of pdctl that has to succeed; how many seconds it took."""
        began = monotonic()
        done = self.cli(*arguments, timeout=UP_S)
        if done.returncode != 0:
            raise SystemExit(f"pdctl {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return monotonic() - began

    def status(self) -> dict[str, Any]:
        """What `pdctl status --json` says."""
        answer = self.cli("status", "--json", "--name", NAME)
        return dict(json.loads(answer.stdout))

    def cpu_s(self) -> float:
        """Processor time so far: of all hosts since they were switched on, and of all commands."""
        commands = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(host.cpu_s() for host in self.cluster) + commands.ru_utime + commands.ru_stime


@contextmanager
def fleet(count: int) -> Iterator[Fleet]:
    """So many hosts; at the end nothing of a deployment may be left on them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir(mode=0o700)
        model = make_tiny_model(folder / "tiny")
        specs = {f"host{number}": Spec() for number in range(1, count + 1)}
        with Cluster(specs, folder / "cluster", shared=[model]) as cluster:
            made = Fleet(cluster, Cli(folder), model)
            yield made
            made.run("down", "--all")
            cluster.check_gone()
