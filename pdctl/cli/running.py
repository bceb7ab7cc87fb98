"""Running a command's coroutine under the signals of a terminal."""

import asyncio
import signal
from collections.abc import Coroutine


def run_until_interrupted(work: Coroutine[object, object, None]) -> bool:
    """Run to the end, or until Ctrl-C or SIGTERM (each cancels once more); whether it came to its end."""

    async def main() -> bool:
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        await asyncio.wait({task})
        if task.cancelled():
            return False
        task.result()
        return True

    return asyncio.run(main())
