"""What a check says, as plain data."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One thing about a host, or about the deployment as a whole (no host)."""

    level: Level
    host: str
    subject: str  # a word: "memlock"
    text: str
    remedy: str = ""  # the command, or what else mends it

    def __str__(self) -> str:
        where = f"host {self.host}: " if self.host else ""
        return f"{where}{self.subject}: {self.text}"

    @property
    def line(self) -> str:
        """All of it."""
        return f"{self}: {self.remedy}" if self.remedy else str(self)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep a deployment from running."""
    return [finding for finding in findings if finding.level == "error"]


def warnings(findings: Iterable[Finding]) -> list[Finding]:
    """Those that may."""
    return [finding for finding in findings if finding.level == "warning"]
