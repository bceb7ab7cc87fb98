"""Makes the pictures of docs/dashboard.md: what a real `pdctl up` of the demo model shows in tmux while it serves.

    .venv/bin/python docs/images/make.py

Needs tmux, and port 8000 free. Takes about two minutes.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.terminal_theme import MONOKAI

HERE = Path(__file__).parent
PDCTL = Path(sys.executable).with_name("pdctl")
LIMIT_S = 180.0
CLIENTS, LOAD_S = 3, 60.0
PROMPT = "Tell me a story about a bear, a river and the winter. "


class Terminal:
    """`pdctl up` in a tmux of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir(mode=0o700)
        self._socket = str(folder / "tmux")
        self._environment = os.environ | {
            "PDCTL_STATE_DIR": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "COLORTERM": "truecolor",
        }

    def start(self, columns: int, rows: int) -> None:
        """Open it."""
        self._tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), f"{PDCTL} up --name chat")

    def resize(self, columns: int, rows: int) -> None:
        """Give it another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def press(self, *keys: str) -> None:
        """Type keys."""
        self._tmux("send-keys", *keys)

    def shown(self, *, escapes: bool = False) -> str:
        """Return what is on its screen."""
        return self._tmux("capture-pane", "-p", *(["-e"] if escapes else []))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what nothing announces."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {LIMIT_S:g} s for {what}; on the screen:\n{self.shown()}")
            time.sleep(0.2)

    def status(self) -> dict[str, Any]:
        """Return what `pdctl status --json` says."""
        done = subprocess.run([PDCTL, "status", "--json"], env=self._environment, capture_output=True, check=True)
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def close(self) -> None:
        """End the deployment, and with it `pdctl up` and tmux."""
        subprocess.run([PDCTL, "down", "--all"], env=self._environment, capture_output=True, check=True)
        self.until(lambda: not self._lives(), "the end of tmux")

    def _lives(self) -> bool:
        return subprocess.run(self._command("has-session"), capture_output=True, check=False).returncode == 0

    def _tmux(self, *arguments: str) -> str:
        command = self._command(*arguments)
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout

    def _command(self, *arguments: str) -> list[str]:
        return ["tmux", "-S", self._socket, "-f", os.devnull, *arguments]


@contextmanager
def load(endpoint: str) -> Iterator[None]:
    """Send chats, a few at a time, as long as the context lasts."""
    ended = threading.Event()

    def chat(number: int) -> None:
        while not ended.is_set():
            text = f"{number}: {PROMPT * 8}"
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 48, "stream": True}
            with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body, timeout=LIMIT_S) as answer:
                for _ in answer.iter_bytes():
                    pass

    threads = [threading.Thread(target=chat, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def draw(terminal: Terminal, name: str, columns: int) -> None:
    """Write what is on the screen as a picture."""
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True, legacy_windows=False)
    for line in AnsiDecoder().decode(terminal.shown(escapes=True).rstrip("\n")):
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    picture = console.export_svg(title="pdctl up", theme=MONOKAI, unique_id="pdctl")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # nothing is fetched to look at it
    (HERE / f"{name}.svg").write_text(picture.replace("Fira Code, monospace", "monospace"))


def main() -> None:
    """Draw the dashboard under load, and after an engine was killed."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(Path(folder))
        terminal.start(120, 36)
        try:
            terminal.until(lambda: re.search(r"chat +ready", terminal.shown()) is not None, "readiness")
            status = terminal.status()
            with load(status["endpoint"]):
                time.sleep(LOAD_S)  # for the graphs to have something to show
                terminal.press("Right", "Right", "Right")
                time.sleep(1)
                draw(terminal, "dashboard-120x36", 120)
            terminal.resize(80, 24)
            decode = next(process for process in status["processes"] if process["name"] == "decode-0")
            os.kill(decode["pid"], signal.SIGKILL)
            terminal.press("/", *"registered", "Enter")
            terminal.until(lambda: "loading weights" in terminal.shown(), "the engine to be started again")
            draw(terminal, "dashboard-80x24", 80)
        finally:
            terminal.close()


if __name__ == "__main__":
    main()
