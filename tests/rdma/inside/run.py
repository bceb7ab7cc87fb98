"""All tests that need the machine of tests/rdma/softroce.sh, in two runs of pytest.

Torch takes half a minute to import there. So a process loads it that does nothing else, while the tests that do without
run here; those that need engines run in a fork of that process, and so does each engine.
"""

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest

INSIDE = "tests/rdma/inside"
ENGINES = f"{INSIDE}/engines"
FAULTS = "tests/engine/transfer/test_transfer_faults.py"
# What pytest brings along takes long to import; what has been loaded already cannot be rewritten.
PLUGINS = ("-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:xdist")
OPTIONS = (*PLUGINS, "-W", "ignore::pytest.PytestAssertRewriteWarning", "-rs", "--durations=5")
LOADED = [
    "pytest",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "engine.server.process",
    "engine.server.startup",
    "engine.server.backend",
    "engine.loading.chat_template",
    "engine.loading.folder_tokenizer",
    "engine.loading.model",
    "engine.loading.safetensors",
    "engine.runner.runner",
    "engine.transfer.measure.source",
    "engine.transfer.measure.target",
    "pdctl.bench.transfer.links",
    "pdctl.bench.transfer.report",
    "pdctl.bench.transfer.run",
    "pdctl.cli.bench",
    "pdctl.cli.bench_transfer",
    "pdctl.cli.main",
    "pdctl.hosts.open",
    "pdctl.topology.loading",
    "typer.testing",
]


def main() -> int:
    """Run all; return the exit status of the first run that has failed."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        engines = start_fork_server(log.fileno())
        status = pytest.main([*OPTIONS, "--confcutdir=tests/rdma", f"--ignore={ENGINES}", INSIDE])
        second = engines.Process(target=run_with_engines, args=(forkserver._forkserver._forkserver_address,))
        second.start()
        second.join()
        if second.exitcode:
            log.seek(0)
            sys.stdout.write(log.read())
    return status or second.exitcode or 0


def start_fork_server(log: int) -> multiprocessing.context.ForkServerContext:
    """Its forks, the engines, write to the log what goes to stderr."""
    own = os.dup(sys.stderr.fileno())
    os.dup2(log, sys.stderr.fileno())
    engines = multiprocessing.get_context("forkserver")
    engines.set_forkserver_preload(LOADED)
    forkserver.ensure_running()
    os.dup2(own, sys.stderr.fileno())
    os.close(own)
    return engines


def run_with_engines(address: str) -> None:
    """The second run, in a fork; what it forks comes from the same server, where Python would start another one."""
    server = forkserver._forkserver
    server._forkserver_address, server.ensure_running = address, lambda: None
    os.environ["KV_TRANSPORTS"] = "rdma"
    sys.exit(pytest.main([*OPTIONS, f"--confcutdir={Path(FAULTS).parent}", ENGINES, FAULTS]))


if __name__ == "__main__":
    sys.exit(main())
