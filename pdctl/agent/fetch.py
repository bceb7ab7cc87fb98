"""HTTP requests from the agent's host, for launchers that do not reach the processes' addresses themselves."""

from __future__ import annotations

import http.client
from typing import Any, Dict
from urllib.parse import urlsplit

MAX_BODY_BYTES = 8 * 1024 * 1024  # of an answer: it travels in one message


def fetch(method: str, url: str, headers: Dict[str, str], body: str, timeout: float) -> Dict[str, Any]:
    """Send one request; returns ``status``, ``headers`` and ``body``. Blocks; raises OSError where none is answered."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body.encode(), headers)
        answer = connection.getresponse()
        content = answer.read(MAX_BODY_BYTES + 1)
    except http.client.HTTPException as error:
        raise OSError(f"{url} did not answer in HTTP: {error!r}") from None
    finally:
        connection.close()
    if len(content) > MAX_BODY_BYTES:
        raise OSError(f"the answer of {url} has more than {MAX_BODY_BYTES} bytes")
    return {"status": answer.status, "headers": dict(answer.getheaders()), "body": content.decode(errors="replace")}
