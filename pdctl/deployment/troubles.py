"""What the log of a process that failed means, and what to do."""

import re
from collections.abc import Iterable

from pdctl.profiles import Trouble

TAIL = 400  # lines: a process may say a lot after what went wrong


def advice(lines: Iterable[str], troubles: Iterable[Trouble]) -> str:
    """Return what is advised for the lines, each advice once, with the line that it is for."""
    texts = list(lines)
    found = []
    for trouble in troubles:
        line = next((text for text in texts if re.search(trouble.pattern, text)), None)
        if line is not None:
            found.append(f"advice: {trouble.advice}\n  for: {line.strip()[:300]}")
    return "\n".join(found)
