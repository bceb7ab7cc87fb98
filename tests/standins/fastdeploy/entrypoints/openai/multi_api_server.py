"""`python -m fastdeploy.entrypoints.openai.multi_api_server`: an API server for each data parallel rank.

As FastDeploy's own, it ends its servers when it is interrupted (SIGINT), leaves them behind on SIGTERM, and lives on
without one that has died.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from standin_faults import print_error
from standin_flags import Flags, ports

from fastdeploy.standin_arguments import parse


def main() -> None:
    """Start the servers, and wait for the end."""
    flags = _flags()
    given = flags.parse_args()
    count = given.num_servers
    flags.check_count("--ports", given.ports, count, "--num-servers")
    flags.check_count("--metrics-ports", given.metrics_ports, count, "--num-servers")
    flags.check_count("--controller-ports", given.controller_ports, count, "--num-servers")
    commands = [_arguments(given, rank) for rank in range(count)]
    for command in commands:
        if parse(command).dp != count:
            flags.error(f"argument --num-servers: {count}, which --args --data-parallel-size is not")
    processes = [_start(command, rank) for rank, command in enumerate(commands)]
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        print_error("All servers stopped.")


def _flags() -> Flags:
    flags = Flags("fastdeploy.entrypoints.openai.multi_api_server")
    add = flags.add_argument
    add("--ports", type=ports, default=[8000, 8002])
    add("--num-servers", type=int, default=2)
    add("--metrics-ports", "--metrics-port", type=ports, default=[8800, 8802])
    add("--controller-ports", type=lambda text: None if text == "-1" else ports(text))
    add("--args", nargs=argparse.REMAINDER)
    return flags


def _arguments(given: argparse.Namespace, rank: int) -> list[str]:
    controller = given.controller_ports[rank] if given.controller_ports else -1
    return [
        *(given.args or []),
        *("--port", str(given.ports[rank])),
        *("--metrics-port", str(given.metrics_ports[rank])),
        *("--controller-port", str(controller)),
        *("--local-data-parallel-id", str(rank)),
    ]


def _start(command: list[str], rank: int) -> subprocess.Popen[bytes]:
    logs = Path(os.environ["FD_LOG_DIR"]) / f"log_{rank}"
    return subprocess.Popen(
        [sys.executable, "-m", "fastdeploy.entrypoints.openai.api_server", *command],
        env=os.environ | {"FD_LOG_DIR": str(logs)},
    )


if __name__ == "__main__":
    main()
