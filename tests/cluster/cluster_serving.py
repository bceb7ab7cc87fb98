"""Deployments on a cluster, started by the command line as a user would."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.cluster.cluster import Cluster
from tests.e2e.e2e_harness import Cli

UP_S = 180.0
PYTHON = sys.executable  # which has pdctl and the engine, and is seen by all hosts


def topology(
    model: Path, cluster: Cluster, prefill: list[str], decode: list[str], **changes: object
) -> dict[str, object]:
    """A deployment of the builtin engine with a prefill and a decode engine on each of the hosts."""
    hosts = {host.name: {"ssh": host.name, "python": PYTHON} for host in cluster}
    groups = {
        "prefill": [{"host": name} for name in prefill],
        "decode": [{"host": name} for name in decode],
    }
    return {"name": "far", "model": str(model), "hosts": hosts, **groups} | changes


@contextmanager
def serving(cli: Cli, content: dict[str, object]) -> Iterator[str]:
    """Run a deployment for as long as the context lasts; gives the router's address."""
    up = cli("up", "-d", cli.write(content), timeout=UP_S)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        yield str(cli.status("--name", str(content["name"]))["endpoint"])
    finally:
        down = cli("down", "--name", str(content["name"]))
        assert down.returncode == 0, down.stdout + down.stderr


def ask(url: str, prompt: str = "The quick brown fox", tokens: int = 8) -> httpx.Response:
    """Send one request, through whichever engines the router chooses."""
    model = httpx.get(f"{url}/v1/models", timeout=60, trust_env=False).json()["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
