"""Runs the dashboard in a terminal for tests: `FILE [quiet]`. FILE gets why it ended. SIGUSR1: the source fails.

With `quiet`, nothing comes from the source after the first state.
"""

import asyncio
import signal
import sys

from rich.console import Console

from pdctl.dashboard.run import run_dashboard
from pdctl.errors import StateError
from tests.dashboard.deployment_samples import FakeSource, line


async def tick(source: FakeSource) -> None:
    number = 0
    while True:
        for name in ("router", "prefill-0", "decode-0"):
            source.lines.put_nowait(line(f"tick {number} of {name}", name))
        number += 1
        await asyncio.sleep(0.05)


async def main() -> str:
    source = FakeSource()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, setattr, source, "failure", StateError("the agent is gone"))
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    source.states_end = quiet = sys.argv[2:] == ["quiet"]
    ticking = asyncio.create_task(asyncio.Event().wait() if quiet else tick(source))
    try:
        await run_dashboard(source, Console(), quit_label="end the test")
        return "returned"
    except StateError as error:
        return f"raised {error}"
    finally:
        ticking.cancel()
        if source.reading:
            sys.stdout.write("logs are still being read\n")


try:
    outcome = asyncio.run(main())
except KeyboardInterrupt:
    outcome = "interrupted"
with open(sys.argv[1], "w") as report:
    report.write(outcome)
