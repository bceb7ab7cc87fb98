"""Programs on terminals of their own, and what they draw there."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class PtyChild:
    """A program on a terminal of its own."""

    def __init__(self, argv, *, rows=24, columns=80, **variables):
        self.output = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            # A size in the environment, such as readline sets it, would come before the terminal's own.
            own = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
            os.execvpe(argv[0], argv, own | {"TERM": "xterm-256color"} | variables)
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.fd)

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def frame(self):
        """The rows of the last whole screen that was drawn at the present size."""
        for drawn in reversed(self.output.split("\x1b[H")):
            rows = ESCAPES.sub("", drawn).split("\r\n")
            if [len(row) for row in rows] == [self.columns] * self.rows:
                return [row.rstrip() for row in rows]
        return []

    def until(self, condition, timeout=20.0):
        """Read what the program writes until ``condition`` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {timeout} s; the last screen:\n" + "\n".join(self.frame())
            assert self._read(left), f"the program ended; it wrote:\n{self.output}"

    def to_end(self):
        """Read until the program ends; return whether its terminal is as it was before."""
        while self._read(20.0):
            pass
        attributes = termios.tcgetattr(self.fd)
        os.waitpid(self.pid, 0)
        self.pid = 0
        return attributes == self.before

    def _read(self, timeout):
        ready, _, _ = select.select([self.fd], [], [], timeout)
        assert ready, "the program wrote nothing"
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
