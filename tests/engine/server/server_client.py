"""Asking the API over real HTTP, and reading what it answers."""

import asyncio
import json

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


async def ask(client, path, **body):
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def events(client, path, **body):
    """Return a stream's events: (event name or None, data)."""
    async with client.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        return parse_events(await response.text())


def parse_events(text):
    assert text.endswith("\n\n")
    out = []
    for block in text[:-2].split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        out.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return out


def chunks(stream):
    assert stream[-1] == (None, "[DONE]")
    assert all(name is None for name, _ in stream)
    return [data for _, data in stream[:-1]]


async def until(event):
    """Wait for an event of another thread."""
    assert await asyncio.to_thread(event.wait, 10)
